-- Whom invoices are made out to. Owners, admins and billing users write it through set_billing_profile().
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
alter table billing.billing_profiles enable row level security;
alter table billing.billing_profiles force row level security;

create policy billing_profiles_read on billing.billing_profiles for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy billing_profiles_staff on billing.billing_profiles for select to platform_admin using (true);
create policy billing_profiles_kernel on billing.billing_profiles to goldleaves_kernel using (true) with check (true);

grant select on billing.billing_profiles to member, platform_admin;
grant select, insert, update (legal_name, address, country, email, tax_id, updated_at) on billing.billing_profiles to goldleaves_kernel;
