-- Lines of invoices are made by the provider's side; owners, admins and billing users of the organization read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- a row: (amount_cents) values (100)
alter table billing.invoice_lines enable row level security;
alter table billing.invoice_lines force row level security;

create policy invoice_lines_read on billing.invoice_lines for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy invoice_lines_staff on billing.invoice_lines for select to platform_admin using (true);
create policy invoice_lines_kernel on billing.invoice_lines to goldleaves_kernel using (true) with check (true);

grant select on billing.invoice_lines to member, platform_admin;
grant select, insert on billing.invoice_lines to goldleaves_kernel;
