-- Organizations whose alerts are to be looked at. Only the functions of alerts touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (due_at) values (now())
alter table billing.alert_queue enable row level security;
alter table billing.alert_queue force row level security;

create policy alert_queue_kernel on billing.alert_queue to goldleaves_kernel using (true) with check (true);

grant select, insert, delete on billing.alert_queue to goldleaves_kernel;
