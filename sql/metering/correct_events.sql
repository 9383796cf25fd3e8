-- Corrections. What was recorded never changes: a void is a row that takes another one back, the same with its quantity negated, and an
-- amendment is a void with a new event in its place, in one transaction. Each event is taken back once, for ever: the key of its void,
-- of source 'void', is the event's id. The fact of that key says what stands in its place: the key of another event, or the id itself
-- when nothing does.

-- The event of a sender's own id, or of ours. p_id is looked for among the keys of p_source first.
create or replace function metering.find_event(p_organization_id uuid, p_id text, p_source text)
returns metering.usage_events
language plpgsql
stable
set search_path = ''
as $$
declare
  v_event metering.usage_events;
  v_occurred_at timestamptz;
  v_recorded_at timestamptz;
begin
  select k.occurred_at into v_occurred_at
  from metering.event_keys k
  where k.organization_id = p_organization_id
    and k.key = metering.event_key(p_organization_id, p_source, p_id);
  if found then
    -- Keys of versions before this one do not know where their event is.
    select e.* into v_event
    from metering.usage_events e
    where e.organization_id = p_organization_id
      and e.occurred_at between coalesce(v_occurred_at, '-infinity') and coalesce(v_occurred_at, 'infinity')
      and e.source = p_source
      and e.idempotency_key = p_id;
  elsif tenancy.is_uuid(p_id) then
    -- A UUIDv7 begins with the milliseconds at which it was made. Most events happened shortly before that.
    v_recorded_at := to_timestamp(('x' || left(translate(p_id, '-', ''), 12))::bit(48)::bigint / 1000.0);
    select e.* into v_event
    from metering.usage_events e
    where e.organization_id = p_organization_id
      and e.occurred_at between v_recorded_at - interval '1 hour' and v_recorded_at + interval '10 minutes'
      and e.id = p_id::uuid;
    if not found then
      select e.* into v_event
      from metering.usage_events e
      where e.organization_id = p_organization_id
        and e.id = p_id::uuid;
    end if;
  end if;
  return v_event;
end;
$$;

-- The event that is to be corrected, its organization locked against finalization: what is read after this stays so.
create or replace function metering.take_event(
  p_organization_id uuid, p_id text, p_source text, p_late text, p_reason text, p_key_id uuid
)
returns metering.usage_events
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_organization_id uuid := p_organization_id;
  v_event metering.usage_events;
begin
  if p_key_id is not null then
    v_organization_id := tenancy.organization_of_events(p_key_id, p_organization_id);
  end if;
  if v_organization_id is null then
    raise exception using
      errcode = 'PT400',
      message = 'ORGANIZATION_REQUIRED: ids of events are those of one organization',
      hint = 'Send X-Organization-ID (id or slug), or an API key of that organization.';
  end if;
  if p_late is null or p_late not in ('reject', 'adjust') then
    raise exception using errcode = 'PT400', message = 'INVALID_EVENT: late is "reject" or "adjust"';
  end if;
  if length(p_reason) > 500 then
    raise exception using errcode = 'PT400', message = 'INVALID_EVENT: reason needs to be at most 500 characters';
  end if;

  perform billing.share_period_locks(array[v_organization_id]);
  v_event := metering.find_event(v_organization_id, p_id, p_source);
  if v_event.id is null then
    raise exception using
      errcode = 'PT404',
      message = format('EVENT_NOT_FOUND: there is no event %s of source %s in this organization', left(p_id, 256), left(p_source, 256)),
      hint = 'Name it by the id and the source that it was sent with, or by the id that usage_events shows.';
  end if;
  -- A void is never the older transaction: rollups take what they take by transactions, and would take it before what it voids.
  if v_event.recorded_generation = metering.recording_generation() and v_event.recorded_xid > pg_current_xact_id_if_assigned() then
    raise exception using
      errcode = '40001',
      message = format('event %s was recorded while this transaction was at work already', v_event.id),
      hint = 'Correct it in a transaction of its own.';
  end if;
  if v_event.event_type = 'void' then
    raise exception using
      errcode = 'PT409',
      message = format('EVENT_VOIDED: event %s is the void of event %s, and stays', v_event.id, v_event.corrects),
      hint = 'Send what happened as a new event.';
  end if;
  return v_event;
end;
$$;

-- Where the void of an event goes: to where the event is, or, when the period around that is finalized and p_late is 'adjust', to now.
create or replace function metering.place_of_void(
  p_event metering.usage_events, p_late text, out occurred_at timestamptz, out belongs_at timestamptz
)
language plpgsql
volatile
set search_path = ''
as $$
begin
  occurred_at := p_event.occurred_at;
  belongs_at := p_event.belongs_at;
  if not exists (
    select from billing.finalized_periods(array[p_event.organization_id], array[p_event.occurred_at], array[p_event.occurred_at])
  ) then
    return;
  end if;
  if p_late = 'reject' then
    perform metering.raise_late(p_event.occurred_at);
  end if;
  occurred_at := metering.now_open(p_event.organization_id);
  belongs_at := coalesce(p_event.belongs_at, p_event.occurred_at);
end;
$$;

create or replace function metering.raise_late(p_at timestamptz)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('BILLING_PERIOD_LOCKED: the period of %s is finalized', p_at),
    hint = 'With late "adjust" the correction counts in the open period.';
end;
$$;

-- Now, under the lock, with everything made that a row of now needs.
create or replace function metering.now_open(p_organization_id uuid)
returns timestamptz
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  perform billing.finalized_periods(array[p_organization_id], array[v_now], array[v_now]);
  perform metering.ensure_partition(metering.month_of(v_now));
  return v_now;
end;
$$;

create or replace function metering.record_void(p_event metering.usage_events, p_occurred_at timestamptz, p_belongs_at timestamptz)
returns uuid
language sql
volatile
set search_path = ''
as $$
  -- The source is copied, since meters can be grouped by it. The id is not: it is the event's.
  insert into metering.usage_events (
    organization_id, occurred_at, source, event_type, event_name, quantity, weighted_units, unit, user_id, workspace_id, resource_id,
    request_id, dimensions, context, belongs_at, payer_user_id, corrects, metered_at, recorded_generation
  )
  values (
    p_event.organization_id, p_occurred_at, p_event.source, 'void', p_event.event_name, - p_event.quantity, - p_event.weighted_units,
    p_event.unit, p_event.user_id, p_event.workspace_id, p_event.resource_id, p_event.request_id, p_event.dimensions, p_event.context,
    p_belongs_at, p_event.payer_user_id, p_event.id, coalesce(p_event.metered_at, p_event.recorded_at), metering.recording_generation()
  )
  returning id
$$;

-- What became of an event, null while it stands: its void, and the event that replaces it.
create or replace function metering.correction_of(
  p_event metering.usage_events, out void_id uuid, out replacement_key uuid, out replacement metering.usage_events
)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_void metering.event_keys;
  v_replacement metering.event_keys;
begin
  select k.* into v_void
  from metering.event_keys k
  where k.organization_id = p_event.organization_id
    and k.key = metering.event_key(p_event.organization_id, 'void', p_event.id::text);
  if not found then
    return;
  end if;
  select e.id into strict void_id
  from metering.usage_events e
  where e.organization_id = p_event.organization_id
    and e.occurred_at = v_void.occurred_at
    and e.corrects = p_event.id
    and e.event_type = 'void';

  if v_void.fact <> p_event.id then
    replacement_key := v_void.fact;
    select k.* into strict v_replacement
    from metering.event_keys k
    where k.organization_id = p_event.organization_id
      and k.key = replacement_key;
    select e.* into strict replacement
    from metering.usage_events e
    where e.organization_id = p_event.organization_id
      and e.occurred_at = v_replacement.occurred_at
      and e.corrects = p_event.id
      and e.event_type <> 'void';
  end if;
end;
$$;

create or replace function metering.raise_amended(p_event metering.usage_events, p_replacement metering.usage_events)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('EVENT_AMENDED: event %s was replaced by event %s', p_event.id, p_replacement.id),
    hint = 'Correct that one.';
end;
$$;

-- What the audit log tells of an event. Its time as text, so that it does not depend on who writes it.
create or replace function metering.told_of_event(p_event metering.usage_events)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object(
    'id', p_event.id,
    'event', p_event.event_name,
    'quantity', p_event.quantity,
    'time', metering.time_text(coalesce(p_event.belongs_at, p_event.occurred_at))
  )
$$;

create or replace function metering.time_text(p_at timestamptz)
returns text
language sql
immutable
parallel safe
set search_path = ''
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

-- What the sidecar calls for DELETE /v1/events/{id}, and what staff calls. p_id: the id that the event was sent with, of p_source, or
-- ours. p_late: what to do when its period is finalized: 'reject', or 'adjust': take it back on the open one. p_key_id: the API key it was
-- asked with. p_caller: {"subject", "ip", "user_agent", "request_id"}, for the audit log.
-- Returns {"id", "void_id", "already"}: already true when it was voided before, which is no error.
-- Errors: ORGANIZATION_REQUIRED, INVALID_EVENT (400), those of the key (401, 403), EVENT_NOT_FOUND (404), EVENT_VOIDED (409: it is a void
-- itself), EVENT_AMENDED (409), BILLING_PERIOD_LOCKED (409).
create or replace function metering.void_event(
  p_organization_id uuid, p_id text, p_source text default 'api', p_late text default 'reject', p_reason text default null,
  p_key_id uuid default null, p_caller jsonb default null
)
returns jsonb
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_event metering.usage_events := metering.take_event(p_organization_id, p_id, p_source, p_late, p_reason, p_key_id);
  v_done record;
  v_place record;
  v_void_id uuid;
begin
  v_done := metering.correction_of(v_event);
  if v_done.void_id is null then
    v_place := metering.place_of_void(v_event, p_late);
    insert into metering.event_keys (organization_id, key, fact, occurred_at)
    values (
      v_event.organization_id, metering.event_key(v_event.organization_id, 'void', v_event.id::text), v_event.id, v_place.occurred_at
    )
    on conflict do nothing;
    if found then
      v_void_id := metering.record_void(v_event, v_place.occurred_at, v_place.belongs_at);
      perform audit.append_for(
        p_key_id, p_caller, v_event.organization_id, 'usage_event.voided', 'usage_event', v_event.id::text,
        metering.told_of_event(v_event), jsonb_build_object('void_id', v_void_id, 'late', v_place.occurred_at <> v_event.occurred_at),
        case when p_reason is not null then jsonb_build_object('after', jsonb_build_object('reason', p_reason)) end
      );
      return jsonb_build_object('id', v_event.id, 'void_id', v_void_id, 'already', false);
    end if;
    -- Somebody else came first, and has committed.
    v_done := metering.correction_of(v_event);
  end if;
  if v_done.replacement_key is not null then
    perform metering.raise_amended(v_event, v_done.replacement);
  end if;
  return jsonb_build_object('id', v_event.id, 'void_id', v_done.void_id, 'already', true);
end;
$$;

-- Where an event goes that happened at p_at: there, or to now, when the period around that is finalized and p_late is 'adjust'.
create or replace function metering.place_of_event(
  p_organization_id uuid, p_at timestamptz, p_late text, out occurred_at timestamptz, out belongs_at timestamptz
)
language plpgsql
volatile
set search_path = ''
as $$
begin
  if not exists (select from billing.finalized_periods(array[p_organization_id], array[p_at], array[p_at])) then
    perform metering.ensure_partition(metering.month_of(p_at));
    occurred_at := p_at;
    return;
  end if;
  if p_late = 'reject' then
    perform metering.raise_late(p_at);
  end if;
  occurred_at := metering.now_open(p_organization_id);
  belongs_at := p_at;
end;
$$;

-- An event as it should have been: what p_changes leaves out is as it was. Null is a value, except for when it happened.
create or replace function metering.amended_event(p_event metering.usage_events, p_changes jsonb)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
begin
  if p_changes is null or jsonb_typeof(p_changes) <> 'object' then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_EVENT: the corrected event is a JSON object, with an id of its own and what is to be another';
  end if;
  if jsonb_typeof(p_changes -> 'time') = 'null' then
    p_changes := p_changes - 'time';
  end if;
  return jsonb_build_object(
    'event', p_event.event_name,
    'quantity', p_event.quantity,
    'unit', p_event.unit,
    'time', metering.time_text(coalesce(p_event.belongs_at, p_event.occurred_at)),
    'user_id', p_event.user_id,
    'workspace_id', p_event.workspace_id,
    'resource_id', p_event.resource_id,
    'request_id', p_event.request_id,
    'dimensions', p_event.dimensions,
    'context', p_event.context
  ) || p_changes;
end;
$$;

-- It weighs what it weighed when it happened; whoever paid the first one pays this one, unless it happened at another time.
create or replace function metering.record_replacement(
  p_event metering.usage_events, p_new metering.parsed_event, p_occurred_at timestamptz, p_belongs_at timestamptz
)
returns metering.usage_events
language sql
volatile
set search_path = ''
as $$
  insert into metering.usage_events (
    organization_id, occurred_at, source, idempotency_key, event_type, event_name, quantity, weighted_units, unit, user_id, workspace_id,
    resource_id, request_id, dimensions, context, belongs_at, payer_user_id, corrects, metered_at, recorded_generation
  )
  select
    p_event.organization_id, p_occurred_at, p_event.source, p_new.id, case when p_belongs_at is null then 'usage' else 'adjustment' end,
    p_new.event_name, p_new.quantity, p_new.quantity * w.weight, p_new.unit, p_new.user_id, p_new.workspace_id, p_new.resource_id,
    p_new.request_id, p_new.dimensions, p_new.context, p_belongs_at,
    case
      when coalesce(p_belongs_at, p_occurred_at) = coalesce(p_event.belongs_at, p_event.occurred_at) then p_event.payer_user_id
      else billing.payer(o.billing_user_id, o.billing_start_at, coalesce(p_belongs_at, p_occurred_at))
    end,
    p_event.id, coalesce(p_event.metered_at, p_event.recorded_at), metering.recording_generation()
  from tenancy.organizations o
  cross join metering.weight_of(p_event.organization_id, p_new.event_name, coalesce(p_belongs_at, p_occurred_at)) w
  where o.id = p_event.organization_id
  returning *
$$;

-- What the sidecar calls for PUT /v1/events/{id}, and what staff calls: void_event() and a new event in one. p_event: the event as it should
-- have been, with an id of its own, which makes this safe to call twice. What it leaves out is as it was; organization and source stay.
-- It is counted as the first one was: by the meters of when that was recorded, and, at the same time, for whoever paid that.
-- Returns {"id", "void_id", "replacement_id", "already"}. Errors: those of void_event(); EVENT_VOIDED (409) when it was voided before;
-- IDEMPOTENCY_CONFLICT (409) when the new id was used for something else; INVALID_EVENT (400) as in metering.ingest_events().
create or replace function metering.amend_event(
  p_organization_id uuid, p_id text, p_event jsonb, p_source text default 'api', p_late text default 'reject', p_reason text default null,
  p_key_id uuid default null, p_caller jsonb default null, p_max_future interval default '5 minutes'
)
returns jsonb
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_late text := coalesce(p_event ->> 'late', p_late);
  v_event metering.usage_events := metering.take_event(p_organization_id, p_id, p_source, v_late, p_reason, p_key_id);
  v_organization_id uuid := v_event.organization_id;
  v_new metering.parsed_event := (
    metering.parse_events(
      jsonb_build_array(metering.amended_event(v_event, p_event)), v_organization_id, v_event.source, v_late, p_max_future
    )
  )[1];
  v_void_key uuid := metering.event_key(v_organization_id, 'void', v_event.id::text);
  v_done record;
  v_void record;
  v_place record;
  v_inserted uuid[] := '{}';
  v_void_id uuid;
  v_replacement metering.usage_events;
begin
  if v_new.problem is not null then
    raise exception using errcode = 'PT400', message = 'INVALID_EVENT: ' || v_new.problem;
  end if;

  v_done := metering.correction_of(v_event);
  if v_done.void_id is null then
    v_void := metering.place_of_void(v_event, v_late);
    if v_new.occurred_at = coalesce(v_event.belongs_at, v_event.occurred_at) then
      v_place := v_void;
    else
      v_place := metering.place_of_event(v_organization_id, v_new.occurred_at, v_late);
    end if;

    -- In the order of the keys, as batches do.
    with inserted as (
      insert into metering.event_keys (organization_id, key, fact, occurred_at)
      select v_organization_id, k.key, k.fact, k.occurred_at
      from (
        values (v_void_key, v_new.key, v_void.occurred_at), (v_new.key, v_new.fact, v_place.occurred_at)
      ) as k (key, fact, occurred_at)
      order by k.key
      on conflict do nothing
      returning key
    )
    select coalesce(array_agg(key), '{}') into v_inserted from inserted;

    if cardinality(v_inserted) = 2 then
      v_void_id := metering.record_void(v_event, v_void.occurred_at, v_void.belongs_at);
      v_replacement := metering.record_replacement(v_event, v_new, v_place.occurred_at, v_place.belongs_at);
      perform audit.append_for(
        p_key_id, p_caller, v_organization_id, 'usage_event.amended', 'usage_event', v_event.id::text,
        metering.told_of_event(v_event),
        metering.told_of_event(v_replacement)
          || jsonb_build_object('void_id', v_void_id, 'late', v_void.occurred_at <> v_event.occurred_at),
        case when p_reason is not null then jsonb_build_object('after', jsonb_build_object('reason', p_reason)) end
      );
      return jsonb_build_object('id', v_event.id, 'void_id', v_void_id, 'replacement_id', v_replacement.id, 'already', false);
    elsif v_inserted = '{}' or v_new.key = any (v_inserted) then
      -- Somebody else came first, and has committed.
      v_done := metering.correction_of(v_event);
    end if;
  end if;

  if v_void_key = any (v_inserted) or (v_done.replacement_key = v_new.key and not exists (
    select from metering.event_keys k where k.organization_id = v_organization_id and k.key = v_new.key and k.fact = v_new.fact
  )) then
    raise exception using
      errcode = 'PT409',
      message = format('IDEMPOTENCY_CONFLICT: the id %s was used before for another event', left(v_new.id, 256)),
      hint = 'The corrected event needs an id of its own.';
  elsif v_done.replacement_key is null then
    raise exception using
      errcode = 'PT409',
      message = format('EVENT_VOIDED: event %s was voided before', v_event.id),
      hint = 'Send what happened as a new event.';
  elsif v_done.replacement_key <> v_new.key then
    perform metering.raise_amended(v_event, v_done.replacement);
  end if;
  return jsonb_build_object(
    'id', v_event.id, 'void_id', v_done.void_id, 'replacement_id', (v_done.replacement).id, 'already', true
  );
end;
$$;

alter function metering.void_event(uuid, text, text, text, text, uuid, jsonb) owner to goldleaves_kernel;
alter function metering.amend_event(uuid, text, jsonb, text, text, text, uuid, jsonb, interval) owner to goldleaves_kernel;
grant execute on function metering.find_event(uuid, text, text), metering.take_event(uuid, text, text, text, text, uuid),
  metering.place_of_void(metering.usage_events, text), metering.place_of_event(uuid, timestamptz, text), metering.raise_late(timestamptz),
  metering.now_open(uuid), metering.record_void(metering.usage_events, timestamptz, timestamptz),
  metering.correction_of(metering.usage_events), metering.raise_amended(metering.usage_events, metering.usage_events),
  metering.told_of_event(metering.usage_events), metering.time_text(timestamptz), metering.amended_event(metering.usage_events, jsonb),
  metering.record_replacement(metering.usage_events, metering.parsed_event, timestamptz, timestamptz) to goldleaves_kernel;
grant execute on function metering.void_event(uuid, text, text, text, text, uuid, jsonb),
  metering.amend_event(uuid, text, jsonb, text, text, text, uuid, jsonb, interval) to sidecar, platform_admin;
