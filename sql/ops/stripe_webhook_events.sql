-- Events of Stripe that were not applied, for monitoring: without what Stripe said in them, and without names of people.
create or replace function ops.unsettled_stripe_events()
returns table (
  id text, type text, created_at timestamptz, received_at timestamptz, status text, attempts integer, next_attempt_at timestamptz, message text,
  organization_id uuid
)
language sql
stable
security definer
set search_path = ''
as $$
  select e.id, e.type, e.created_at, e.received_at, e.status, e.attempts, e.next_attempt_at, e.message, e.organization_id
  from stripe.webhook_events e
  where e.status in ('received', 'failed')
  union all
  select e.id, e.type, e.created_at, e.received_at, e.status, e.attempts, null, e.message, e.organization_id
  from stripe.webhook_events e
  where e.status = 'dead'
  union all
  select e.id, e.type, e.created_at, e.received_at, e.status, e.attempts, null, e.message, e.organization_id
  from stripe.webhook_events e
  where e.status = 'unlinked'
$$;

create or replace view ops.stripe_webhook_events with (security_invoker) as
select * from ops.unsettled_stripe_events();

alter function ops.unsettled_stripe_events() owner to goldleaves_kernel;
grant execute on function ops.unsettled_stripe_events() to monitor;
grant select on ops.stripe_webhook_events to monitor;
