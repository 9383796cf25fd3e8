-- Idempotency keys. Only the functions that ingest usage touch them.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
alter table metering.event_keys enable row level security;
alter table metering.event_keys force row level security;

create policy event_keys_kernel on metering.event_keys to goldleaves_kernel using (true) with check (true);

grant select, insert on metering.event_keys to goldleaves_kernel;
