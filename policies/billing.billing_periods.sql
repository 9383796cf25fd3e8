-- Billing periods are made by the provider's side; owners, admins and billing users of the organization read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (timezone) values ('UTC')
alter table billing.billing_periods enable row level security;
alter table billing.billing_periods force row level security;

create policy billing_periods_read on billing.billing_periods for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy billing_periods_staff on billing.billing_periods for select to platform_admin using (true);
create policy billing_periods_kernel on billing.billing_periods to goldleaves_kernel using (true) with check (true);

grant select on billing.billing_periods to member, platform_admin;
grant select, insert, update (previous_end, status, finalized_at) on billing.billing_periods to goldleaves_kernel;
