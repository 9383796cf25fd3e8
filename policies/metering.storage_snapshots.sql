-- How much was stored when a day ended. Made by the kernel, read by every role of the organization that may read usage.
--
-- may select: owner, admin, member, viewer, billing, usage:read; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
alter table metering.storage_snapshots enable row level security;
alter table metering.storage_snapshots force row level security;

create policy storage_snapshots_read on metering.storage_snapshots for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read'));

create policy storage_snapshots_staff on metering.storage_snapshots for select to platform_admin using (true);
create policy storage_snapshots_kernel on metering.storage_snapshots to goldleaves_kernel using (true) with check (true);

grant select on metering.storage_snapshots to member, platform_admin;
grant select, insert, update (day_end, bytes, taken_at) on metering.storage_snapshots to goldleaves_kernel;
