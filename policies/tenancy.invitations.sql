-- Invitations. Owners and admins see those of their organization, in the view pending_invitations; they are made, sent again,
-- revoked and accepted by functions alone, which know the codes. The code's hash is shown to nobody.
--
-- may select: owner, admin; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
alter table tenancy.invitations enable row level security;
alter table tenancy.invitations force row level security;

create policy invitations_read on tenancy.invitations for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin'));

create policy invitations_staff on tenancy.invitations for select to platform_admin using (true);
create policy invitations_kernel on tenancy.invitations to goldleaves_kernel using (true) with check (true);

grant select (organization_id, id, email, role, invited_by, created_at, sent_at, expires_at, accepted_at, accepted_by, revoked_at)
  on tenancy.invitations to member, platform_admin;
grant select, insert, update (code_sha256, sent_at, expires_at, accepted_at, accepted_by, revoked_at) on tenancy.invitations to goldleaves_kernel;
