-- Alerts are made and removed by who may write notification settings, through schema api; members read them.
--
-- may select: owner, admin, member, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (threshold_kind, threshold) values ('absolute', 12345)
alter table billing.usage_alerts enable row level security;
alter table billing.usage_alerts force row level security;

create policy usage_alerts_read on billing.usage_alerts for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'billing'));

create policy usage_alerts_staff on billing.usage_alerts for select to platform_admin using (true);
create policy usage_alerts_kernel on billing.usage_alerts to goldleaves_kernel using (true) with check (true);

grant select on billing.usage_alerts to member, platform_admin;
grant select, insert, delete on billing.usage_alerts to goldleaves_kernel;
