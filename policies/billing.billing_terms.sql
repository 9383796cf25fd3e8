-- Tax and due dates are agreed with the provider, whose staff writes them; owners, admins and billing users read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
alter table billing.billing_terms enable row level security;
alter table billing.billing_terms force row level security;

create policy billing_terms_read on billing.billing_terms for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy billing_terms_staff on billing.billing_terms for select to platform_admin using (true);
create policy billing_terms_kernel on billing.billing_terms to goldleaves_kernel using (true) with check (true);

grant select on billing.billing_terms to member, platform_admin;
grant select, insert, update (tax_name, tax_percent, tax_inclusive, payment_days, invoice_mode, updated_at) on billing.billing_terms to goldleaves_kernel;
