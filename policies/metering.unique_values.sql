-- Sums of usage events, which the functions that read usage put together with what is not rolled up yet. They alone touch them.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
alter table metering.unique_values enable row level security;
alter table metering.unique_values force row level security;

create policy unique_values_kernel on metering.unique_values to goldleaves_kernel using (true) with check (true);

grant select, insert, update, delete on metering.unique_values to goldleaves_kernel;
