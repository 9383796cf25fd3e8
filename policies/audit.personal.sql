-- What the audit log knows of people. Owners and admins see it for their organization, but not who of the provider's staff it was;
-- the salts are shown to nobody. Only the function that erases deletes here: sql/audit/erase.sql.
--
-- may select: owner, admin; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
alter table audit.personal enable row level security;
alter table audit.personal force row level security;

create policy personal_read on audit.personal for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin') and part <> 'staff');

create policy personal_staff on audit.personal for select to platform_admin using (true);
create policy personal_kernel on audit.personal to goldleaves_kernel using (true) with check (true);

grant select (organization_id, position, part, data) on audit.personal to member, platform_admin;
grant select, insert, delete on audit.personal to goldleaves_kernel;
