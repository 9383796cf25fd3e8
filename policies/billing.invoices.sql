-- Invoices are made by the provider's side; owners, admins and billing users of the organization read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- a row: (payer_user_id, currency, total_cents) values (null, 'usd', 100)
alter table billing.invoices enable row level security;
alter table billing.invoices force row level security;

create policy invoices_read on billing.invoices for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy invoices_staff on billing.invoices for select to platform_admin using (true);
create policy invoices_kernel on billing.invoices to goldleaves_kernel using (true) with check (true);

grant select on billing.invoices to member, platform_admin;
grant select, insert on billing.invoices to goldleaves_kernel;
