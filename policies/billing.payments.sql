-- Payments are recorded by the provider's side; owners, admins and billing users of the organization read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- a row: (kind, invoice_id, amount_cents) values ('payment', null, 10)
alter table billing.payments enable row level security;
alter table billing.payments force row level security;

create policy payments_read on billing.payments for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy payments_staff on billing.payments for select to platform_admin using (true);
create policy payments_kernel on billing.payments to goldleaves_kernel using (true) with check (true);

grant select on billing.payments to member, platform_admin;
grant select, insert on billing.payments to goldleaves_kernel;
