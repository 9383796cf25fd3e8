-- What was to be told. Written when an alert fires; who may read notification settings reads it.
--
-- may select: owner, admin, member, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- a row: (kind, threshold_kind, threshold, period_start, value) values ('usage_alert', 'absolute', 1, now(), 1)
alter table notifications.notification_log enable row level security;
alter table notifications.notification_log force row level security;

create policy notification_log_read on notifications.notification_log for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'billing'));

create policy notification_log_staff on notifications.notification_log for select to platform_admin using (true);
create policy notification_log_kernel on notifications.notification_log to goldleaves_kernel using (true) with check (true);

grant select on notifications.notification_log to member, platform_admin;
grant select, insert on notifications.notification_log to goldleaves_kernel;
