-- Until where reports were made. Only the functions of reports touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (meter_code, generation, xid) values ('api.request', 0, '0')
alter table stripe.report_positions enable row level security;
alter table stripe.report_positions force row level security;

create policy report_positions_kernel on stripe.report_positions to goldleaves_kernel using (true) with check (true);

grant select, insert, update (generation, xid, resent_at) on stripe.report_positions to goldleaves_kernel;
