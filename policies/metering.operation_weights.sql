-- What operations weigh, for all organizations (organization_id is null) or for one. The provider's staff sets them, and the
-- functions that record usage read them.
--
-- may select: platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
alter table metering.operation_weights enable row level security;
alter table metering.operation_weights force row level security;

create policy operation_weights_staff on metering.operation_weights for select to platform_admin using (true);
create policy operation_weights_kernel on metering.operation_weights to goldleaves_kernel using (true) with check (true);

grant select on metering.operation_weights to platform_admin;
grant select, insert on metering.operation_weights to goldleaves_kernel;
