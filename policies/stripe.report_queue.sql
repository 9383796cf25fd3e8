-- Whose usage is to be reported. Only the functions of reports touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (meter_code, bucket_start) values ('api.request', '2026-01-01')
alter table stripe.report_queue enable row level security;
alter table stripe.report_queue force row level security;

create policy report_queue_kernel on stripe.report_queue to goldleaves_kernel using (true) with check (true);

-- Whoever removes a row locks it first, which takes a right to update.
grant select, insert, update (queued_at), delete on stripe.report_queue to goldleaves_kernel;
