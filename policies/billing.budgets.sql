-- Budgets are set by who may write notification settings, through set_budget(); members read them.
--
-- may select: owner, admin, member, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (amount_cents) values (100)
alter table billing.budgets enable row level security;
alter table billing.budgets force row level security;

create policy budgets_read on billing.budgets for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'billing'));

create policy budgets_staff on billing.budgets for select to platform_admin using (true);
create policy budgets_kernel on billing.budgets to goldleaves_kernel using (true) with check (true);

grant select on billing.budgets to member, platform_admin;
grant select, insert, update (amount_cents, updated_at), delete on billing.budgets to goldleaves_kernel;
