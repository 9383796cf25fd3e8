-- What operations weigh. The weights for all organizations (organization_id is null) are no secret; those of their own are read by
-- everybody who reads usage. The provider's staff sets them, and the functions that record usage read them.
--
-- may select: owner, admin, member, viewer, billing, usage:read; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
alter table metering.operation_weights enable row level security;
alter table metering.operation_weights force row level security;

create policy operation_weights_read on metering.operation_weights for select to member
  using (
    organization_id is null
    or organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read')
  );
comment on policy operation_weights_read on metering.operation_weights is
  'goldleaves lint policy_without_tenant: rows of no organization are the weights for all';

create policy operation_weights_staff on metering.operation_weights for select to platform_admin using (true);
create policy operation_weights_kernel on metering.operation_weights to goldleaves_kernel using (true) with check (true);

grant select on metering.operation_weights to member, platform_admin;
grant select, insert, update (weight) on metering.operation_weights to goldleaves_kernel;
