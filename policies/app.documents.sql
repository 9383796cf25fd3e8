-- Documents belong to one organization.
--
-- may select: owner, admin, member, viewer, data:read; platform_admin everywhere
-- may insert: owner, admin, member, data:write
-- may update: owner, admin, member, data:write
-- may delete: owner, admin
alter table app.documents enable row level security;
alter table app.documents force row level security;

create policy documents_read on app.documents for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'data:read'));

create policy documents_insert on app.documents for insert to member
  with check (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'data:write'));

create policy documents_update on app.documents for update to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'data:write'))
  with check (organization_id = tenancy.current_org());

create policy documents_delete on app.documents for delete to member
  using (organization_id = tenancy.current_org_for('owner', 'admin'));

create policy documents_staff on app.documents for select to platform_admin using (true);

grant select, delete on app.documents to member;
-- Also what they cannot change, so that a whole row can be sent back: sql/tenancy/rows_sent_back.sql.
grant insert (organization_id, id, case_id, title, size_bytes, status, storage_key, created_by, created_at),
  update (organization_id, id, case_id, title, size_bytes, status, storage_key, created_by, created_at) on app.documents to member;
grant select on app.documents to platform_admin;
