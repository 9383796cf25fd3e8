-- Subscriptions as Stripe has them: owners, admins and billing users of the organization see their own.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (id, customer_id, subscription_id, status, is_live, latest_event_id, latest_event_at) values (ops.new_id(), 'cus_isolation', ops.new_id(), 'active', false, 'evt_isolation', now())
alter table stripe.subscriptions enable row level security;
alter table stripe.subscriptions force row level security;

create policy subscriptions_read on stripe.subscriptions for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy subscriptions_staff on stripe.subscriptions for select to platform_admin using (true);
create policy subscriptions_kernel on stripe.subscriptions to goldleaves_kernel using (true) with check (true);

grant select on stripe.subscriptions to member, platform_admin;
grant select, insert, update (status, plan_code, price_id, current_period_start, current_period_end, trial_end, cancel_at, canceled_at, ended_at, facts, latest_event_id, latest_event_at)
  on stripe.subscriptions to goldleaves_kernel;
