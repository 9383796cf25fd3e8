-- API keys. Owners and admins see those of their organization, the provider's staff all of them; functions make and revoke them.
-- The key's hash is shown to nobody.
--
-- may select: owner, admin; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
alter table tenancy.api_keys enable row level security;
alter table tenancy.api_keys force row level security;

create policy api_keys_read on tenancy.api_keys for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin') and kind = 'organization');

create policy api_keys_staff on tenancy.api_keys for select to platform_admin using (true);
create policy api_keys_kernel on tenancy.api_keys to goldleaves_kernel using (true) with check (true);

grant select (id, kind, organization_id, name, prefix, scopes, created_by, created_at, expires_at, revoked_at, last_used_at, rotated_from)
  on tenancy.api_keys to member, platform_admin;
grant select, insert, update (expires_at, revoked_at, last_used_at) on tenancy.api_keys to goldleaves_kernel;
