-- Messages to the provider's application: its staff reads them, the sidecar sends them through functions.
--
-- may select: platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (type, payload) values ('isolation.row', '{}')
alter table notifications.webhook_messages enable row level security;
alter table notifications.webhook_messages force row level security;

create policy webhook_messages_staff on notifications.webhook_messages for select to platform_admin using (true);
create policy webhook_messages_kernel on notifications.webhook_messages to goldleaves_kernel using (true) with check (true);

grant select on notifications.webhook_messages to platform_admin;
grant select, insert, delete, update (status, attempts, next_attempt_at, last_status, last_error, delivered_at)
  on notifications.webhook_messages to goldleaves_kernel;
