-- What Stripe sent: the provider's staff reads it, the functions of the inbox write it.
--
-- may select: platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (id, type, created_at, is_live, payload) values (ops.new_id(), 'isolation.row', now(), false, '{}')
alter table stripe.webhook_events enable row level security;
alter table stripe.webhook_events force row level security;

create policy webhook_events_staff on stripe.webhook_events for select to platform_admin using (true);
create policy webhook_events_kernel on stripe.webhook_events to goldleaves_kernel using (true) with check (true);

grant select on stripe.webhook_events to platform_admin;
grant select, insert, delete,
  update (object_id, customer_id, subscription_id, facts, payload, status, message, organization_id, attempts, next_attempt_at, settled_at, told_at)
  on stripe.webhook_events to goldleaves_kernel;
