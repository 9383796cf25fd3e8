-- Batches that repeated events or met finalized periods. Counted by the functions that tell operations.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
alter table metering.repeated_batches enable row level security;
alter table metering.repeated_batches force row level security;

create policy repeated_batches_kernel on metering.repeated_batches to goldleaves_kernel using (true) with check (true);

grant select, insert, delete on metering.repeated_batches to goldleaves_kernel;
