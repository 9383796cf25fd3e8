-- What an organization is on at each moment. Written like subscriptions; what has begun is never changed, only what is planned.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (starts_at, status, plan_code, made_by, announced_at) values (now() + '1 year', 'active', 'starter', 'isolation', now())
alter table billing.subscription_phases enable row level security;
alter table billing.subscription_phases force row level security;

create policy subscription_phases_read on billing.subscription_phases for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy subscription_phases_staff on billing.subscription_phases for select to platform_admin using (true);
create policy subscription_phases_kernel on billing.subscription_phases to goldleaves_kernel using (true) with check (true);

grant select on billing.subscription_phases to member, platform_admin;
grant select, insert, update (announced_at), delete on billing.subscription_phases to goldleaves_kernel;
