-- What was granted of quotas. Only the functions that reserve and release touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (feature, period_start) values ('isolation', '-infinity')
alter table billing.quota_counters enable row level security;
alter table billing.quota_counters force row level security;

create policy quota_counters_kernel on billing.quota_counters to goldleaves_kernel using (true) with check (true);

grant select, insert, update (granted, measured_at, reserved, reserved_xid), delete on billing.quota_counters to goldleaves_kernel;
