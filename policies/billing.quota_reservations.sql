-- What was reserved of quotas under a reference. Only the functions that reserve and release touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (feature, reference, period_start, amount) values ('isolation', 'isolation', '-infinity', 1)
alter table billing.quota_reservations enable row level security;
alter table billing.quota_reservations force row level security;

create policy quota_reservations_kernel on billing.quota_reservations to goldleaves_kernel using (true) with check (true);

grant select, insert, update (released), delete on billing.quota_reservations to goldleaves_kernel;
