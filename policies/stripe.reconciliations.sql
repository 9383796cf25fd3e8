-- What reconciling with Stripe found: the provider's staff reads it.
--
-- may select: platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (period_start, kind, subject, ours, drift, cause) values ('2026-01-01', 'usage', 'api.request', 1, 0, 'in step')
alter table stripe.reconciliations enable row level security;
alter table stripe.reconciliations force row level security;

create policy reconciliations_staff on stripe.reconciliations for select to platform_admin using (true);
create policy reconciliations_kernel on stripe.reconciliations to goldleaves_kernel using (true) with check (true);

grant select on stripe.reconciliations to platform_admin;
grant select, insert, delete, update (ours, theirs, explained, drift, cause, told_at, checked_at) on stripe.reconciliations to goldleaves_kernel;
