-- Amounts on their way to Stripe: the provider's staff sees what became of them.
--
-- may select: platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (kind, meter_code, customer_id, amount_cents, currency, description, period_start, period_end) values ('credit', 'api.request', 'cus_isolation', -1, 'usd', 'isolation', '2026-01-01', '2026-02-01')
alter table stripe.invoice_items enable row level security;
alter table stripe.invoice_items force row level security;

create policy invoice_items_staff on stripe.invoice_items for select to platform_admin using (true);
create policy invoice_items_kernel on stripe.invoice_items to goldleaves_kernel using (true) with check (true);

grant select on stripe.invoice_items to platform_admin;
grant select, insert, update (customer_id, subscription_id, status, attempts, rounds, looked_for_at, next_attempt_at, first_sent_at, acknowledged_at, stripe_id,
  last_error) on stripe.invoice_items to goldleaves_kernel;
