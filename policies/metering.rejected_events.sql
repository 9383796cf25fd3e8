-- Usage that could not be accepted, with its reason. The provider's staff reads it, and resolves it by functions.
--
-- may select: platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
alter table metering.rejected_events enable row level security;
alter table metering.rejected_events force row level security;

create policy rejected_events_staff on metering.rejected_events for select to platform_admin using (true);
create policy rejected_events_kernel on metering.rejected_events to goldleaves_kernel using (true) with check (true);

grant select on metering.rejected_events to platform_admin;
grant select, insert, update (code, message, resolution, resolved_at) on metering.rejected_events to goldleaves_kernel;
