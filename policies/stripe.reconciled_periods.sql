-- Which billing periods were reconciled with Stripe. Only the functions that reconcile touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (period_start) values ('2026-01-01')
alter table stripe.reconciled_periods enable row level security;
alter table stripe.reconciled_periods force row level security;

create policy reconciled_periods_kernel on stripe.reconciled_periods to goldleaves_kernel using (true) with check (true);

grant select, insert, update (checked_at, claimed_until) on stripe.reconciled_periods to goldleaves_kernel;
