-- What Stripe has sent, and what became of it.
create view api.stripe_webhook_events with (security_invoker) as
select id, type, api_version, created_at, is_live, object_id, customer_id, subscription_id, organization_id, payload, status, message, attempts,
  next_attempt_at, received_at, settled_at
from stripe.webhook_events;

comment on view api.stripe_webhook_events is 'Events that Stripe has sent, and what became of them. For platform_admin.';
comment on column api.stripe_webhook_events.id is 'Its id at Stripe. What replay_stripe_event takes.';
comment on column api.stripe_webhook_events.type is 'Stripe''s own, such as customer.subscription.updated.';
comment on column api.stripe_webhook_events.api_version is 'The version of Stripe''s API that it is written in.';
comment on column api.stripe_webhook_events.created_at is 'When it happened, by Stripe''s clock, in whole seconds (UTC).';
comment on column api.stripe_webhook_events.is_live is 'Whether it is of live mode.';
comment on column api.stripe_webhook_events.object_id is 'What it is about: the id of a subscription, an invoice, a charge, a customer …';
comment on column api.stripe_webhook_events.customer_id is 'The customer at Stripe that it is of.';
comment on column api.stripe_webhook_events.subscription_id is 'The subscription at Stripe that it tells of, also where it is about an invoice.';
comment on column api.stripe_webhook_events.organization_id is 'Whose it is; null as long as that is not known.';
comment on column api.stripe_webhook_events.payload is 'The event as Stripe sent it; {} once it is 13 months old.';
comment on column api.stripe_webhook_events.status is
  'applied; stale: what it says was overtaken; ignored: nothing is made of it; unlinked: its customer is no organization''s yet; '
  'received or failed: it is to be tried again; dead: it is not, until it is replayed.';
comment on column api.stripe_webhook_events.message is 'Why it was not applied.';
comment on column api.stripe_webhook_events.attempts is 'How often it was tried since it came or was replayed.';
comment on column api.stripe_webhook_events.next_attempt_at is 'When one that failed is tried next (UTC).';
comment on column api.stripe_webhook_events.received_at is 'When it came (UTC).';
comment on column api.stripe_webhook_events.settled_at is 'When it was applied, or found to be stale or of no use (UTC); null until then.';

grant select on api.stripe_webhook_events to platform_admin;

create function api.replay_stripe_event(event_id text)
returns api.stripe_webhook_events
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('replays events of Stripe');
  perform stripe.replay_event(replay_stripe_event.event_id);
  return (select e from api.stripe_webhook_events e where e.id = replay_stripe_event.event_id);
end;
$$;

comment on function api.replay_stripe_event(text) is $$Apply an event of Stripe again

For platform_admin. Whatever became of it: it is read anew, and applied in a moment. Where nothing was wrong, nothing changes.

Errors: ROLE_REQUIRED (403), WEBHOOK_NOT_FOUND (404).$$;

create function api.replay_stripe_events(since timestamptz default null)
returns integer
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('replays events of Stripe');
  return stripe.replay_dead_events(replay_stripe_events.since);
end;
$$;

comment on function api.replay_stripe_events(timestamptz) is $$Apply all dead events of Stripe again

For platform_admin. since: only what came from then on. Returns how many there are.

Errors: ROLE_REQUIRED (403).$$;

grant execute on function api.replay_stripe_event(text), api.replay_stripe_events(timestamptz) to member, service, platform_admin;
