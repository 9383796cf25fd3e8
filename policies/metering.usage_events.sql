-- Usage is written by the provider's side alone and read by every role of the organization. Its partitions have their own RLS
-- switches and no grants: they are reached through this table only.
--
-- may select: owner, admin, member, viewer, billing, usage:read; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
alter table metering.usage_events enable row level security;
alter table metering.usage_events force row level security;

create policy usage_events_read on metering.usage_events for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read'));

create policy usage_events_staff on metering.usage_events for select to platform_admin using (true);
create policy usage_events_kernel on metering.usage_events to goldleaves_kernel using (true) with check (true);

grant select on metering.usage_events to member, platform_admin;
grant select, insert on metering.usage_events to goldleaves_kernel;
