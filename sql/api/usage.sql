-- One fact table, two faces: usage_events for those who look at usage, billing_events for those who bill it.
create view api.usage_events with (security_invoker) as
select
  e.id,
  e.request_id,
  e.organization_id as tenant_id,
  e.billing_entity_type,
  e.billing_entity_id,
  e.user_id,
  e.event_name,
  e.dimensions ->> 'endpoint' as route,
  coalesce(e.dimensions ->> 'method' || ' ' || (e.dimensions ->> 'endpoint'), e.event_name) as action,
  e.quantity as units,
  billing.cost_cents(e) as cost_cents,
  e.occurred_at as ts,
  (e.dimensions - 'endpoint' - 'method' - 'duration_ms')
    || case when e.dimensions ? 'duration_ms' then jsonb_build_object('processing_time', e.dimensions -> 'duration_ms') else '{}' end
    -- Requests of earlier versions have client_ip, those of now ip: who looks for either finds it.
    || case when e.dimensions ? 'ip' then jsonb_build_object('client_ip', e.dimensions -> 'ip') else '{}' end
    || case when e.dimensions ? 'client_ip' then jsonb_build_object('ip', e.dimensions -> 'client_ip') else '{}' end
    as metadata,
  e.recorded_at as created_at,
  e.event_type,
  e.corrects,
  e.workspace_id,
  metering.context_text(e.context) as context,
  coalesce(e.weighted_units, e.quantity) as weighted_units
from metering.usage_events e;

comment on view api.usage_events is 'Everything the organization has used, an event a row, with what it costs.';
comment on column api.usage_events.id is 'Made by us; a UUIDv7, so it grows with time.';
comment on column api.usage_events.event_name is 'What happened, such as api.request or doc.upload.';
comment on column api.usage_events.request_id is 'X-Request-ID of the request that caused the event; null when there was none.';
comment on column api.usage_events.tenant_id is 'The organization.';
comment on column api.usage_events.billing_entity_type is 'Who pays: user, what was used in a personal organization; organization from its conversion on, and always in others.';
comment on column api.usage_events.billing_entity_id is 'Who pays: the id of the user or of the organization.';
comment on column api.usage_events.user_id is 'Who did it: the id of a user here, or the provider''s own; null when not known.';
comment on column api.usage_events.route is 'The billable route, without ids; null when it was no request.';
comment on column api.usage_events.action is 'Method and route; the event''s name when it was no request. Never null.';
comment on column api.usage_events.units is 'How much, in the unit of the event''s meter.';
comment on column api.usage_events.cost_cents is 'units times the price that the invoice takes, in minor units of the organization''s currency, not rounded; null when the event is not billed.';
comment on column api.usage_events.ts is 'When it happened (UTC).';
comment on column api.usage_events.metadata is 'status_code, response_size (bytes), ip (also as client_ip), user_agent, processing_time (ms), and what the sender added. Never null.';
comment on column api.usage_events.created_at is 'When it was recorded (UTC).';
comment on column api.usage_events.event_type is 'usage; adjustment: it happened in a period that was finalized already and counts in this one; void: it takes another event back, with units below zero.';
comment on column api.usage_events.corrects is 'The event that a void takes back, or in whose place this one stands; null for all others.';
comment on column api.usage_events.workspace_id is 'The workspace it happened in: the id of one here, or the provider''s own; null when not known.';
comment on column api.usage_events.context is 'Where it happened, such as project Apollo in workspace Legal; admin; other when nobody said. Never null.';
comment on column api.usage_events.weighted_units is 'units times what one weighed when it happened, see operation_weights; units where nothing is set. Never null.';

create view api.billing_events with (security_invoker) as
select
  e.id,
  e.organization_id,
  e.billing_entity_type,
  e.billing_entity_id,
  e.event_type,
  e.event_name,
  e.resource_id,
  e.quantity,
  e.unit,
  billing.unit_amount_cents(e) as unit_cost_cents,
  case
    when e.request_id is null then e.dimensions
    else e.dimensions || jsonb_build_object('request_id', e.request_id)
  end as dimensions,
  coalesce((
    select min((
      (e.recorded_generation, e.recorded_xid) < (r.acknowledged_generation, r.acknowledged_xid) and r.reported @> e.occurred_at
    )::integer)
    from metering.meters m
    join stripe.report_marks r on r.meter_code = m.code
    where m.event_name = e.event_name
      and r.organization_id = e.organization_id
  ), 0) as status,
  e.occurred_at,
  e.recorded_at as created_at,
  coalesce(e.weighted_units, e.quantity) as weighted_units,
  e.corrects,
  e.belongs_at
from metering.usage_events e;

comment on view api.billing_events is 'The events of usage_events, with the fields that billing needs.';
comment on column api.billing_events.id is 'Made by us; a UUIDv7, so it grows with time.';
comment on column api.billing_events.organization_id is 'The organization.';
comment on column api.billing_events.billing_entity_type is 'Who pays: user, what was used in a personal organization; organization from its conversion on, and always in others.';
comment on column api.billing_events.billing_entity_id is 'Who pays: the id of the user or of the organization.';
comment on column api.billing_events.event_name is 'What happened, such as api.request or doc.upload.';
comment on column api.billing_events.resource_id is 'What it happened to, such as the id of a document; null when the sender names nothing.';
comment on column api.billing_events.unit is 'What quantity is in, as the sender called it; null when it did not.';
comment on column api.billing_events.event_type is 'usage; adjustment: it happened in a period that was finalized already and counts in this one; void: it takes another event back, with a quantity below zero.';
comment on column api.billing_events.quantity is 'In units of column unit.';
comment on column api.billing_events.unit_cost_cents is 'Price of a unit that the invoice takes, in minor units of the organization''s currency; null when the event is not billed.';
comment on column api.billing_events.dimensions is 'endpoint, method, status_code, duration_ms, request_id and what the sender added. Never null.';
comment on column api.billing_events.status is '0 pending, 1 posted: acknowledged by Stripe. Never null.';
comment on column api.billing_events.occurred_at is 'When it counts (UTC): when it happened, or for an adjustment when it arrived.';
comment on column api.billing_events.created_at is 'When it was recorded (UTC).';
comment on column api.billing_events.weighted_units is 'quantity times what one weighed when it happened; quantity where nothing is set. Never null.';
comment on column api.billing_events.corrects is 'The event that a void takes back, or in whose place this one stands; null for all others.';
comment on column api.billing_events.belongs_at is 'When it really happened (UTC), in a period that was finalized already; null when that is occurred_at.';

grant select on api.usage_events, api.billing_events to member, platform_admin;

create function api.usage_summary(period_start date default null, group_by text[] default '{}', filter jsonb default '{}')
returns table (
  meter text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric, groups jsonb
)
language sql
stable
set search_path = ''
as $$ select * from billing.usage_summary(period_start, group_by, filter) $$;

comment on function api.usage_summary(date, text[], jsonb) is $$What a period's usage is and costs, a row a meter

period_start is the first day of the period, in the organization's timezone: start_date of billing_periods. Without it: the
current period. Of a finalized period the amounts are those of its invoices. group_by names dimensions that meters keep (column
group_by of meters), and makes a row of each of their groups. filter is an object of names and values, one or a list each: meter,
user_id, workspace_id, billing_entity_id, billing_entity_type, or any dimension. With either of them amounts are not rounded, so that
those of sums and counts add up.

- meter: Code of the meter; the name of the event when no meter counts it. Never null.
- unit: What quantity is in; null when no meter counts the event.
- events: How many events there are. Never null.
- quantity: In unit: what the meter makes of the events, such as their number or the sum of their quantities. Never null.
- unit_amount_cents: Price of one unit, in minor units of the organization's currency, perhaps a fraction; null when it is not billed.
- amount_cents: quantity times unit_amount_cents, rounded once a payer, half away from zero, to whole minor units, unless it is grouped or filtered; 0 when it is not billed. Never null.
- groups: The dimensions of group_by, with null where the meter does not keep one; {} without group_by. Never null.

Errors: PERIOD_NOT_FOUND (404), ORGANIZATION_REQUIRED, INVALID_GROUP_BY, INVALID_FILTER (400).$$;

create function api.usage_report(
  "from" text, "to" text, granularity text default 'day', group_by text[] default '{}', filter jsonb default '{}'
)
returns table (
  bucket_start timestamptz, bucket_end timestamptz, meter text, unit text, groups jsonb, events bigint, quantity numeric
)
language sql
stable
set search_path = ''
as $$ select * from metering.usage_report("from", "to", granularity, group_by, filter) $$;

comment on function api.usage_report(text, text, text, text[], jsonb) is $$Usage over time, a row a bucket and meter

from and to are dates (2026-01-31) or times, read in the organization's timezone unless they have an offset; to does not belong to the
report. granularity is hour, day, week (from Monday) or month, of that timezone: a day has 23, 24 or 25 hours. The report is widened to
whole buckets, and has a row for each of them and each meter and group that was used in it at all, with zeros where it was not.
group_by and filter are those of usage_summary. A correction of a finalized period counts where it was made, perhaps below zero.

- bucket_start: First moment of the bucket (UTC). Never null.
- bucket_end: First moment of the next one (UTC). Never null.
- meter: Code of the meter; the name of the event when no meter counts it. Never null.
- unit: What quantity is in; null when no meter counts the event.
- groups: The dimensions of group_by, with null where the meter does not keep one; {} without group_by. Never null.
- events: How many events there are. Never null.
- quantity: In unit: what the meter makes of the events. Never null.

Errors: INVALID_RANGE, INVALID_GRANULARITY, INVALID_GROUP_BY, INVALID_FILTER, REPORT_TOO_LONG, ORGANIZATION_REQUIRED (400).$$;

grant execute on function api.usage_summary(date, text[], jsonb), api.usage_report(text, text, text, text[], jsonb)
  to member, platform_admin;
