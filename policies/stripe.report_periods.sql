-- What of billing periods no report says. Only the functions of reports touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (meter_code, period_start) values ('api.request', '2026-01-01')
alter table stripe.report_periods enable row level security;
alter table stripe.report_periods force row level security;

create policy report_periods_kernel on stripe.report_periods to goldleaves_kernel using (true) with check (true);

grant select, insert, update (carried, passed_on, credited, closed_at) on stripe.report_periods to goldleaves_kernel;
