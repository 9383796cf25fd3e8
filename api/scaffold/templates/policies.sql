-- $Title belong to one organization.
--
-- may select: owner, admin, member, viewer, data:read; platform_admin everywhere
-- may insert: owner, admin, member, data:write
-- may update: owner, admin, member, data:write
-- may delete: owner, admin
alter table $table enable row level security;
alter table $table force row level security;

create policy ${name}_read on $table for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'data:read'));

create policy ${name}_insert on $table for insert to member
  with check (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'data:write'));

create policy ${name}_update on $table for update to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'data:write'))
  with check (organization_id = tenancy.current_org());

create policy ${name}_delete on $table for delete to member
  using (organization_id = tenancy.current_org_for('owner', 'admin'));

create policy ${name}_staff on $table for select to platform_admin using (true);

grant select, delete on $table to member;
-- Also what they cannot change, so that a whole row can be sent back: sql/tenancy/rows_sent_back.sql.
grant insert ($written),
  update ($written) on $table to member;
grant select on $table to platform_admin;
