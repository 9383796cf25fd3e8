-- Whose customer at Stripe is whose: owners, admins and billing users of the organization see their own.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (id, is_live, linked_by) values (ops.new_id(), false, 'isolation')
alter table stripe.customers enable row level security;
alter table stripe.customers force row level security;

create policy customers_read on stripe.customers for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy customers_staff on stripe.customers for select to platform_admin using (true);
create policy customers_kernel on stripe.customers to goldleaves_kernel using (true) with check (true);

grant select on stripe.customers to member, platform_admin;
grant select, insert, update (email, has_payment_method, deleted_at) on stripe.customers to goldleaves_kernel;
