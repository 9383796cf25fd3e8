-- The audit log. Owners and admins read that of their organization, the provider's staff all of it. Functions of the kernel add to
-- it, and nobody changes it: sql/audit/append_only.sql.
--
-- may select: owner, admin; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
alter table audit.log enable row level security;
alter table audit.log force row level security;

create policy log_read on audit.log for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin'));

create policy log_staff on audit.log for select to platform_admin using (true);
create policy log_kernel on audit.log to goldleaves_kernel using (true) with check (true);

grant select on audit.log to member, platform_admin;
grant select, insert on audit.log to goldleaves_kernel;
