-- Payments that somebody disputes: the provider answers for them.
--
-- may select: platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (id, charge_id, amount_cents, currency, created_at) values ('dp_isolation', 'ch_isolation', 1, 'usd', now())
alter table stripe.disputes enable row level security;
alter table stripe.disputes force row level security;

create policy disputes_staff on stripe.disputes for select to platform_admin using (true);
create policy disputes_kernel on stripe.disputes to goldleaves_kernel using (true) with check (true);

grant select on stripe.disputes to platform_admin;
grant select, insert, update (status, reason, amount_cents) on stripe.disputes to goldleaves_kernel;
