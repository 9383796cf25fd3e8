-- Organizations. Members see their own; owners and admins rename it; only owners delete it, and only before its first usage has
-- made a billing period.
--
-- may select: every_role, every_key; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: owner, admin; goldleaves_kernel everywhere
-- may delete: owner
alter table tenancy.organizations enable row level security;
alter table tenancy.organizations force row level security;

create policy organizations_read on tenancy.organizations for select to member
  using (id = tenancy.current_org() or id = any (tenancy.my_organizations()));

create policy organizations_update on tenancy.organizations for update to member
  using (id = tenancy.current_org_for('owner', 'admin'))
  with check (id = tenancy.current_org());

create policy organizations_delete on tenancy.organizations for delete to member
  using (id = tenancy.current_org_for('owner'));

create policy organizations_staff on tenancy.organizations for select to platform_admin using (true);
create policy organizations_kernel on tenancy.organizations to goldleaves_kernel using (true) with check (true);

grant select, delete on tenancy.organizations to member;
grant update (name) on tenancy.organizations to member;
grant select on tenancy.organizations to platform_admin;
grant select, insert, update (kind, name, slug, owner_user_id, billing_start_at, plan, currency, billing_timezone, billing_anchor_day) on tenancy.organizations to goldleaves_kernel;
