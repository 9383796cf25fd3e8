-- Clients belong to one organization.
--
-- may select: owner, admin, member, viewer, data:read; platform_admin everywhere
-- may insert: owner, admin, member, data:write
-- may update: owner, admin, member, data:write
-- may delete: owner, admin
alter table app.clients enable row level security;
alter table app.clients force row level security;

create policy clients_read on app.clients for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'data:read'));

create policy clients_insert on app.clients for insert to member
  with check (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'data:write'));

create policy clients_update on app.clients for update to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'data:write'))
  with check (organization_id = tenancy.current_org());

create policy clients_delete on app.clients for delete to member
  using (organization_id = tenancy.current_org_for('owner', 'admin'));

create policy clients_staff on app.clients for select to platform_admin using (true);

grant select, delete on app.clients to member;
-- Also what they cannot change, so that a whole row can be sent back: sql/tenancy/rows_sent_back.sql.
grant insert (organization_id, id, name, email, created_by, created_at),
  update (organization_id, id, name, email, created_by, created_at) on app.clients to member;
grant select on app.clients to platform_admin;
