-- Cases belong to one organization.
--
-- may select: owner, admin, member, viewer, data:read; platform_admin everywhere
-- may insert: owner, admin, member, data:write
-- may update: owner, admin, member, data:write
-- may delete: owner, admin
alter table app.cases enable row level security;
alter table app.cases force row level security;

create policy cases_read on app.cases for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'data:read'));

create policy cases_insert on app.cases for insert to member
  with check (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'data:write'));

create policy cases_update on app.cases for update to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'data:write'))
  with check (organization_id = tenancy.current_org());

create policy cases_delete on app.cases for delete to member
  using (organization_id = tenancy.current_org_for('owner', 'admin'));

create policy cases_staff on app.cases for select to platform_admin using (true);

grant select, delete on app.cases to member;
-- Also what they cannot change, so that a whole row can be sent back: sql/tenancy/rows_sent_back.sql.
grant insert (organization_id, id, client_id, title, status, created_by, created_at),
  update (organization_id, id, client_id, title, status, created_by, created_at) on app.cases to member;
grant select on app.cases to platform_admin;
