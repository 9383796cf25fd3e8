-- Sums of usage events, which the functions that read usage put together with what is not rolled up yet. They alone touch them.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
alter table metering.usage_rollups enable row level security;
alter table metering.usage_rollups force row level security;

create policy usage_rollups_kernel on metering.usage_rollups to goldleaves_kernel using (true) with check (true);

grant select, insert, update, delete on metering.usage_rollups to goldleaves_kernel;
