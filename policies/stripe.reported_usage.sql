-- What reports have been made of. Only the functions of reports touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (meter_code, bucket_start, quantity) values ('api.request', '2026-01-01', 1)
alter table stripe.reported_usage enable row level security;
alter table stripe.reported_usage force row level security;

create policy reported_usage_kernel on stripe.reported_usage to goldleaves_kernel using (true) with check (true);

grant select, insert, update (quantity) on stripe.reported_usage to goldleaves_kernel;
