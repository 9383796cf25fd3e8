-- Usage on its way to Stripe: the provider's staff sees what became of it.
--
-- may select: platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (meter_code, bucket_start, sequence, quantity, identifier, customer_id, event_name, period_start, status, generation, xid) values ('api.request', '2026-01-01', 1, 1, ops.new_id(), 'cus_isolation', 'api.request', '2026-01-01', 'pending', 0, '0')
alter table stripe.meter_event_reports enable row level security;
alter table stripe.meter_event_reports force row level security;

create policy meter_event_reports_staff on stripe.meter_event_reports for select to platform_admin using (true);
create policy meter_event_reports_kernel on stripe.meter_event_reports to goldleaves_kernel using (true) with check (true);

grant select on stripe.meter_event_reports to platform_admin;
grant select, insert,
  update (happened_at, status, attempts, next_attempt_at, claimed_until, first_sent_at, acknowledged_at, is_kept, last_error)
  on stripe.meter_event_reports to goldleaves_kernel;
