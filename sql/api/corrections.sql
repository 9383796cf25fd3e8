-- Corrections of usage, by the provider's staff: of events that were recorded, and of those that were not.
create function api.void_usage_event(event_id uuid, reason text default null, late text default 'reject')
returns table (void_id uuid, already boolean)
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('voids usage events');
  return query
    select (v.answer ->> 'void_id')::uuid, (v.answer ->> 'already')::boolean
    from metering.void_event(
      tenancy.current_org(), void_usage_event.event_id::text, p_late => void_usage_event.late, p_reason => void_usage_event.reason
    ) as v (answer);
end;
$$;

comment on function api.void_usage_event(uuid, text, text) is $$Take a usage event back

For platform_admin. Adds an event of type void that takes event_id back, in what every meter counts; nothing is changed or deleted.
event_id is the id that usage_events shows, of the organization that X-Organization-ID names. An event of a finalized period can be taken
back on the open one, with late "adjust". reason is kept in the audit log. Safe to call twice.

- void_id: Id of the event that takes it back. Never null.
- already: True when it had been taken back before. Never null.

Errors: ORGANIZATION_REQUIRED, INVALID_EVENT (400), ROLE_REQUIRED (403), EVENT_NOT_FOUND (404), EVENT_VOIDED, EVENT_AMENDED,
BILLING_PERIOD_LOCKED (409).$$;

create function api.amend_usage_event(event_id uuid, event jsonb, reason text default null, late text default 'reject')
returns table (void_id uuid, replacement_id uuid, already boolean)
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('amends usage events');
  return query
    select (v.answer ->> 'void_id')::uuid, (v.answer ->> 'replacement_id')::uuid, (v.answer ->> 'already')::boolean
    from metering.amend_event(
      tenancy.current_org(), amend_usage_event.event_id::text, amend_usage_event.event,
      p_late => amend_usage_event.late, p_reason => amend_usage_event.reason
    ) as v (answer);
end;
$$;

comment on function api.amend_usage_event(uuid, jsonb, text, text) is $$Put another usage event in the place of one

For platform_admin. Takes event_id back, as void_usage_event does, and records event instead, in one: as POST /v1/events takes one, with an
id of its own, which makes it safe to call twice. What event leaves out is as it was; organization and source stay. late "adjust" counts on
the open period what lies in a finalized one. reason is kept in the audit log.

- void_id: Id of the event that takes it back. Never null.
- replacement_id: Id of the event in its place. Never null.
- already: True when this had been done before. Never null.

Errors: ORGANIZATION_REQUIRED, INVALID_EVENT (400), ROLE_REQUIRED (403), EVENT_NOT_FOUND (404), EVENT_VOIDED, EVENT_AMENDED,
IDEMPOTENCY_CONFLICT, BILLING_PERIOD_LOCKED (409).$$;

create view api.rejected_events with (security_invoker) as
select id, organization_id, source, code, message, event, rejected_at, resolution, resolved_at
from metering.rejected_events;

comment on view api.rejected_events is 'Usage events that could not be accepted, and why. For platform_admin.';
comment on column api.rejected_events.id is 'What replay_rejected_event and dismiss_rejected_event take.';
comment on column api.rejected_events.organization_id is 'The organization that was named, whether it exists or not; null when none was.';
comment on column api.rejected_events.source is 'Who sent it: api, gateway, or the source of a CloudEvent.';
comment on column api.rejected_events.code is 'INVALID_EVENT, BILLING_PERIOD_LOCKED or IDEMPOTENCY_CONFLICT: why it was refused last.';
comment on column api.rejected_events.message is 'The reason, in words.';
comment on column api.rejected_events.event is 'The event as it came: a text where it was no JSON that can be held.';
comment on column api.rejected_events.rejected_at is 'When it came (UTC).';
comment on column api.rejected_events.resolution is 'replayed: it counts now; dismissed; null while it is open.';
comment on column api.rejected_events.resolved_at is 'When it was resolved (UTC); null while it is open.';

grant select on api.rejected_events to platform_admin;

create function api.replay_rejected_event(rejected_id uuid, event jsonb default null, late text default null)
returns table (outcome text, code text, message text)
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('replays rejected events');
  return query
    select r.outcome, r.code, r.message
    from metering.replay_rejected_event(
      tenancy.current_org(), replay_rejected_event.rejected_id, replay_rejected_event.event, replay_rejected_event.late
    ) r;
end;
$$;

comment on function api.replay_rejected_event(uuid, jsonb, text) is $$Send a rejected event again, mended or as it was

For platform_admin. event is the event as it should have been, or null to send it as it was, when what was wrong was not the event: its
organization is there now, say. Source and organization stay as they were. late "adjust" counts on the open period what happened in a
finalized one. When it is accepted, or here already, it is resolved; when it is refused again, it stays open and says why.

- outcome: accepted, duplicate or rejected. Never null.
- code: Why it was rejected; null when it was not.
- message: The reason, in words; null when it was not rejected.

Errors: INVALID_EVENT (400), ROLE_REQUIRED (403), REJECTED_EVENT_NOT_FOUND (404), REJECTED_EVENT_RESOLVED (409).$$;

create function api.dismiss_rejected_event(rejected_id uuid, reason text default null)
returns api.rejected_events
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('dismisses rejected events');
  perform metering.dismiss_rejected_event(tenancy.current_org(), dismiss_rejected_event.rejected_id, dismiss_rejected_event.reason);
  return (select r from api.rejected_events r where r.id = dismiss_rejected_event.rejected_id);
end;
$$;

comment on function api.dismiss_rejected_event(uuid, text) is $$Resolve a rejected event without counting it

For platform_admin. It stays in rejected_events, as dismissed. reason is kept in the audit log.

Errors: INVALID_EVENT (400), ROLE_REQUIRED (403), REJECTED_EVENT_NOT_FOUND (404), REJECTED_EVENT_RESOLVED (409).$$;

grant execute on function api.void_usage_event(uuid, text, text), api.amend_usage_event(uuid, jsonb, text, text),
  api.replay_rejected_event(uuid, jsonb, text), api.dismiss_rejected_event(uuid, text)
  to member, service, platform_admin;
