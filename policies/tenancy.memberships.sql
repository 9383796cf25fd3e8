-- Memberships. Everybody sees who belongs to the organization, and their own memberships elsewhere. Nobody adds people: they come by
-- invitation (sql/tenancy/invitations.sql). Owners and admins change roles, admins no owners; owners remove. Nobody changes their own
-- here; that an owner remains is the trigger's business (sql/tenancy/keep_an_owner.sql).
--
-- may select: every_role; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: owner, admin; goldleaves_kernel everywhere
-- may delete: owner; goldleaves_kernel everywhere
-- a row: (role) values ('viewer')
alter table tenancy.memberships enable row level security;
alter table tenancy.memberships force row level security;

create policy memberships_read on tenancy.memberships for select to member
  using (
    organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'billing')
    or user_id = tenancy.current_user_id()
  );

create policy memberships_update on tenancy.memberships for update to member
  using (
    organization_id = tenancy.current_org()
    and user_id <> tenancy.current_user_id()
    and (tenancy.current_role_in('owner') or (tenancy.current_role_in('admin') and role <> 'owner'))
  )
  with check (
    organization_id = tenancy.current_org()
    and (tenancy.current_role_in('owner') or (tenancy.current_role_in('admin') and role <> 'owner'))
  );

create policy memberships_delete on tenancy.memberships for delete to member
  using (
    organization_id = tenancy.current_org_for('owner')
    and user_id <> tenancy.current_user_id()
  );

create policy memberships_staff on tenancy.memberships for select to platform_admin using (true);
create policy memberships_kernel on tenancy.memberships to goldleaves_kernel using (true) with check (true);

grant select, delete on tenancy.memberships to member;
grant update (role) on tenancy.memberships to member;
grant select on tenancy.memberships to platform_admin;
grant select, insert, update (role), delete on tenancy.memberships to goldleaves_kernel;
