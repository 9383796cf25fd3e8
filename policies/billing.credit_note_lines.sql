-- Lines of credit notes come with them; owners, admins and billing users of the organization read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
alter table billing.credit_note_lines enable row level security;
alter table billing.credit_note_lines force row level security;

create policy credit_note_lines_read on billing.credit_note_lines for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy credit_note_lines_staff on billing.credit_note_lines for select to platform_admin using (true);
create policy credit_note_lines_kernel on billing.credit_note_lines to goldleaves_kernel using (true) with check (true);

grant select on billing.credit_note_lines to member, platform_admin;
grant select, insert on billing.credit_note_lines to goldleaves_kernel;
