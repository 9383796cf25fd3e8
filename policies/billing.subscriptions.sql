-- Subscriptions are written by the provider's side through schema api; owners, admins and billing users of the organization read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (created_by) values ('isolation')
alter table billing.subscriptions enable row level security;
alter table billing.subscriptions force row level security;

create policy subscriptions_read on billing.subscriptions for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy subscriptions_staff on billing.subscriptions for select to platform_admin using (true);
create policy subscriptions_kernel on billing.subscriptions to goldleaves_kernel using (true) with check (true);

grant select on billing.subscriptions to member, platform_admin;
grant select, insert, update (trial_end, has_payment_method) on billing.subscriptions to goldleaves_kernel;
