-- Workspaces. All who belong to the organization see them; owners and admins make and change them, owners delete them. How many a
-- personal organization may have is the trigger's business (sql/tenancy/workspaces.sql).
--
-- may select: owner, admin, member, viewer, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: owner, admin
-- may update: owner, admin; goldleaves_kernel everywhere
-- may delete: owner
alter table tenancy.workspaces enable row level security;
alter table tenancy.workspaces force row level security;

create policy workspaces_read on tenancy.workspaces for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'billing'));

create policy workspaces_insert on tenancy.workspaces for insert to member
  with check (organization_id = tenancy.current_org_for('owner', 'admin'));

create policy workspaces_update on tenancy.workspaces for update to member
  using (organization_id = tenancy.current_org_for('owner', 'admin'))
  with check (organization_id = tenancy.current_org());

create policy workspaces_delete on tenancy.workspaces for delete to member
  using (organization_id = tenancy.current_org_for('owner'));

create policy workspaces_staff on tenancy.workspaces for select to platform_admin using (true);
create policy workspaces_kernel on tenancy.workspaces to goldleaves_kernel using (true) with check (true);

grant select, delete on tenancy.workspaces to member;
-- Also what they cannot change, so that a whole row can be sent back: sql/tenancy/rows_sent_back.sql.
grant insert (organization_id, id, name, created_by, created_at), update (organization_id, id, name, created_by, created_at)
  on tenancy.workspaces to member;
grant select on tenancy.workspaces to platform_admin;
grant select, update (place) on tenancy.workspaces to goldleaves_kernel;
