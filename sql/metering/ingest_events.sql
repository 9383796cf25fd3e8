-- The way in for usage: POST /v1/events and the gateway's spool. Period lock, then key, then fact, in one transaction. The same
-- (organization, source, id) makes one event, for ever, whatever time the retry carries. What cannot be accepted is answered by
-- id and code, kept in rejected_events, and uses up no key.

create or replace function metering.record_rejection(p_source text, p_event jsonb, p_code text, p_message text)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  insert into metering.rejected_events (organization_id, source, code, message, event)
  values (
    case when tenancy.is_uuid(p_event ->> 'organization_id') then (p_event ->> 'organization_id')::uuid end,
    p_source, p_code, p_message, p_event
  )
$$;

-- Of equal ids the first that may count, in the order in which keys are inserted. Without `set search_path`, so that it is inlined.
create or replace function metering.countable(p_parsed metering.parsed_event[], p_locked integer[])
returns setof metering.parsed_event
language sql
stable
parallel safe
as $$
  select distinct on (e.organization_id, e.key) e.*
  from pg_catalog.unnest(p_parsed) as e
  where e.problem is null
    and (e.adjusts or e.position not in (select pg_catalog.unnest(p_locked)))
  order by e.organization_id, e.key, e.position
$$;

-- The core: a batch of one request, or of several that share its transaction. p_requests says of each event which request it came with
-- (null: there is one); the arrays after it have an element a request, see metering.parse_batch().
-- Membership in a list is asked with `in (select unnest(…))`, which is hashed: `= any (…)` compares with each element, and a batch
-- may have a hundred thousand.
-- Plans do not depend on how much there is, and for few events planning costs as much as the rest: hence plan_cache_mode, here and in what
-- this calls.
-- Returns an answer a request: {"accepted", "duplicates", "conflicts": [{index, id, code, message}], "rejected": [{index, id, code,
-- message}]}, where index is the place of the event in its request, from 0.
create or replace function metering.ingest_batch(
  p_events jsonb, p_requests integer[], p_organization_ids uuid[], p_sources text[], p_are_cloud_events boolean[], p_lates text[],
  p_max_future interval
)
returns jsonb[]
language plpgsql
volatile
security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
declare
  v_generation integer := metering.recording_generation();
  v_parsed metering.parsed_event[] := metering.parse_batch(
    case
      when true = any (p_are_cloud_events) then metering.read_cloud_events(p_events, p_requests, p_are_cloud_events)
      else p_events
    end,
    p_requests, p_organization_ids, p_sources, p_are_cloud_events, p_lates, p_max_future
  );
  v_now timestamptz;
  v_id_prefix text;
  v_organizations uuid[];
  v_firsts timestamptz[];
  v_lasts timestamptz[];
  v_reach_now boolean[];
  v_weighted text[];
  v_paid_by_users uuid[];
  v_months date[];
  v_locked integer[] := '{}';
  v_new uuid[];  -- null: all that may count
  v_accepted integer := 0;
begin
  with named as (
    select
      e.organization_id,
      e.event_name,
      min(e.occurred_at) as first_at,
      max(e.occurred_at) as last_at,
      bool_or(e.occurred_at is null or e.adjusts) as reaches_now
    from unnest(v_parsed) as e
    where e.problem is null
    group by 1, 2
  ),
  organizations as (
    select
      n.organization_id,
      min(n.first_at) as first_at,
      max(n.last_at) as last_at,
      bool_or(n.reaches_now) as reaches_now
    from named n
    group by 1
  )
  select
    array_agg(o.organization_id order by o.organization_id),
    array_agg(o.first_at order by o.organization_id),
    array_agg(o.last_at order by o.organization_id),
    array_agg(o.reaches_now order by o.organization_id),
    array(
      select distinct n.event_name
      from named n
      where exists (select from metering.operation_weights w where w.operation = n.event_name)
    )
  into v_organizations, v_firsts, v_lasts, v_reach_now, v_weighted
  from organizations o;

  if v_organizations is not null then
    perform billing.share_period_locks(v_organizations);
    v_now := clock_timestamp();

    select
      array_agg(least(o.first_at, o.now_at) order by o.organization_id),
      array_agg(greatest(o.last_at, o.now_at) order by o.organization_id),
      array[min(metering.month_of(least(o.first_at, o.now_at))), max(metering.month_of(greatest(o.last_at, o.now_at)))]
    into v_firsts, v_lasts, v_months
    from (
      select u.organization_id, u.first_at, u.last_at, case when u.reaches_now then v_now end as now_at
      from unnest(v_organizations, v_firsts, v_lasts, v_reach_now) as u (organization_id, first_at, last_at, reaches_now)
    ) as o;

    -- Only when the batch reaches into a finalized period at all is each event looked at.
    if exists (select from billing.finalized_periods(v_organizations, v_firsts, v_lasts)) then
      select coalesce(array_agg(e.position), '{}') into v_locked
      from unnest(v_parsed) as e
      join billing.billing_periods p
        on p.organization_id = e.organization_id
        and p.period_start <= coalesce(e.occurred_at, v_now)
        and p.period_end > coalesce(e.occurred_at, v_now)
      where e.problem is null
        and p.status = 'finalized';
    end if;

    if v_months[1] < v_months[2] then
      select array_agg(m.month order by m.month) into v_months
      from (
        select metering.month_of(coalesce(e.occurred_at, v_now)) as month
        from unnest(v_parsed) as e
        where e.problem is null
        union
        select metering.month_of(v_now)
      ) as m;
      perform metering.ensure_partition(m) from unnest(v_months) as m;
    else
      perform metering.ensure_partition(v_months[1]);
    end if;

    v_paid_by_users := array(
      select o.id
      from tenancy.organizations o
      where o.id = any (v_organizations)
        and o.billing_user_id is not null
    );

    -- A UUID of version 7, whose random part is the event's key: random numbers cost a system call each, and keys are as rare.
    v_id_prefix := overlay(lpad(to_hex((extract(epoch from v_now) * 1000)::bigint), 12, '0') placing '-' from 9 for 0) || '-7';

    -- Mostly all keys are new, and inserting them costs less when nobody looks first. Who meets one that is there takes all of its own
    -- back, and looks. The keys arrive sorted: unsorted, overlapping batches of many writers deadlock.
    begin
      insert into metering.event_keys (organization_id, key, fact, occurred_at)
      select c.organization_id, c.key, c.fact, case when c.position in (select unnest(v_locked)) then v_now else coalesce(c.occurred_at, v_now) end
      from metering.countable(v_parsed, v_locked) as c;
      get diagnostics v_accepted = row_count;
    exception when unique_violation then
      with inserted as (
        insert into metering.event_keys (organization_id, key, fact, occurred_at)
        select c.organization_id, c.key, c.fact, case when c.position in (select unnest(v_locked)) then v_now else coalesce(c.occurred_at, v_now) end
        from metering.countable(v_parsed, v_locked) as c
        on conflict do nothing
        returning key
      )
      select coalesce(array_agg(i.key), '{}') into v_new from inserted i;
      v_accepted := cardinality(v_new);
    end;

    insert into metering.usage_events (
      organization_id, occurred_at, id, source, idempotency_key, event_type, event_name, quantity, weighted_units, unit,
      user_id, workspace_id, resource_id, request_id, dimensions, context, belongs_at, payer_user_id, recorded_generation
    )
    select
      b.organization_id,
      b.counted_at,
      (v_id_prefix || substr(b.key::text, 16, 4) || '8' || substr(b.key::text, 21))::uuid,
      b.source,
      b.id,
      case when b.belongs_at is null then 'usage' else 'adjustment' end,
      b.event_name,
      b.quantity,
      case
        when b.event_name in (select unnest(v_weighted)) then b.quantity * (
          select w.weight
          from metering.weight_of(b.organization_id, b.event_name, coalesce(b.belongs_at, b.counted_at)) as w
        )
      end,
      b.unit,
      b.user_id,
      b.workspace_id,
      b.resource_id,
      b.request_id,
      b.dimensions,
      b.context,
      b.belongs_at,
      case
        when b.organization_id in (select unnest(v_paid_by_users)) then (
          select billing.payer(o.billing_user_id, o.billing_start_at, coalesce(b.belongs_at, b.counted_at))
          from tenancy.organizations o
          where o.id = b.organization_id
        )
      end,
      v_generation
    from (
      select
        c.*,
        case when c.position in (select unnest(v_locked)) then v_now else coalesce(c.occurred_at, v_now) end as counted_at,
        case when c.position in (select unnest(v_locked)) then c.occurred_at end as belongs_at
      from metering.countable(v_parsed, v_locked) as c
      where v_new is null or c.key in (select unnest(v_new))
      offset 0
    ) as b;
  end if;

  if v_accepted < cardinality(v_parsed) then
    return metering.explain_batch(p_events, v_parsed, v_locked, v_new, v_now, cardinality(p_organization_ids));
  end if;
  return array(
    select metering.answer(count(e.request), 0, '[]', '[]')
    from generate_series(1, cardinality(p_organization_ids)) as r (request)
    left join unnest(coalesce(p_requests, array_fill(1, array[v_accepted]))) as e (request) on e.request = r.request
    group by r.request
    order by r.request
  );
end;
$$;

-- The answers for a batch of which something made no new event, which is kept with the reason, and counted where it is usage again.
create or replace function metering.explain_batch(
  p_events jsonb, p_parsed metering.parsed_event[], p_locked integer[], p_new uuid[], p_now timestamptz, p_requests integer
)
returns jsonb[]
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_answers jsonb[];
begin
  with accepted as materialized (
    select c.position
    from metering.countable(p_parsed, p_locked) as c
    where p_new is null or c.key in (select unnest(p_new))
  ),
  -- Only those are looked up that were not accepted, which are few as a rule: a join would look for all of them.
  compared as materialized (
    select
      e.*,
      case
        when not e.is_accepted and e.problem is null
          then (select k.fact from metering.event_keys k where k.organization_id = e.organization_id and k.key = e.key)
      end as first_fact
    from (
      select
        p.request,
        p.position,
        p.position - min(p.position) over (partition by p.request) as index,
        p.id,
        p.organization_id,
        p.source,
        p.key,
        p.fact,
        p.problem,
        p.occurred_at,
        p.position in (select a.position from accepted a) as is_accepted
      from unnest(p_parsed) as p
      offset 0
    ) as e
  ),
  judged as materialized (
    select
      c.*,
      case
        when c.is_accepted then 'ACCEPTED'
        when c.problem is not null then 'INVALID_EVENT'
        when c.first_fact is null then 'BILLING_PERIOD_LOCKED'
        when c.first_fact <> c.fact then 'IDEMPOTENCY_CONFLICT'
        else 'DUPLICATE'
      end as code
    from compared c
  ),
  explained as materialized (
    select
      j.*,
      case j.code
        when 'INVALID_EVENT' then format('event %s: %s', j.index, j.problem)
        when 'IDEMPOTENCY_CONFLICT' then 'this id was used before with another event, quantity or resource_id; the first one counts'
        when 'BILLING_PERIOD_LOCKED' then format('the period of %s is finalized', coalesce(j.occurred_at, p_now))
      end as message
    from judged j
  ),
  kept as (
    insert into metering.rejected_events (organization_id, source, code, message, event)
    select x.organization_id, x.source, x.code, x.message, p_events -> x.position
    from explained x
    where x.message is not null
  ),
  counted as (
    insert into metering.repeated_batches (organization_id, source, accepted, duplicates, conflicts, locked)
    select
      x.organization_id,
      x.source,
      count(*) filter (where x.code = 'ACCEPTED'),
      count(*) filter (where x.code = 'DUPLICATE'),
      count(*) filter (where x.code = 'IDEMPOTENCY_CONFLICT'),
      count(*) filter (where x.code = 'BILLING_PERIOD_LOCKED')
    from explained x
    where x.code <> 'INVALID_EVENT'
    group by 1, 2
    having bool_or(x.code <> 'ACCEPTED')
  )
  select array_agg(a.answer order by a.request) into v_answers
  from (
    select
      r.request,
      metering.answer(
        count(*) filter (where x.code = 'ACCEPTED'),
        count(*) filter (where x.code = 'DUPLICATE'),
        jsonb_agg(x.refusal order by x.position) filter (where x.code = 'IDEMPOTENCY_CONFLICT'),
        jsonb_agg(x.refusal order by x.position) filter (where x.code in ('INVALID_EVENT', 'BILLING_PERIOD_LOCKED'))
      ) as answer
    from generate_series(1, p_requests) as r (request)
    left join (
      select
        e.request, e.position, e.code,
        case
          when e.message is not null
            then jsonb_build_object('index', e.index, 'id', e.id, 'code', e.code, 'message', e.message)
        end as refusal
      from explained e
    ) as x on x.request = r.request
    group by r.request
  ) as a;
  return v_answers;
end;
$$;

create or replace function metering.answer(p_accepted bigint, p_duplicates bigint, p_conflicts jsonb, p_rejected jsonb)
returns jsonb
language sql
stable
parallel safe
as $$
  select pg_catalog.jsonb_build_object(
    'accepted', p_accepted, 'duplicates', p_duplicates, 'conflicts', coalesce(p_conflicts, '[]'), 'rejected', coalesce(p_rejected, '[]')
  )
$$;

-- p_events: an array of events, or {"events": [...], "late": "adjust"}, or one event. p_organization_id: of all of them, or null when each
-- names its own. p_late: what to do with an event of a finalized period: 'reject' it, unless it or the batch says "late": "adjust"; or
-- 'adjust', for usage that cannot be refused: count it now and keep when it happened.
create or replace function metering.ingest_events(
  p_events jsonb, p_organization_id uuid default null, p_source text default 'api', p_late text default 'reject',
  p_max_future interval default '5 minutes'
)
returns jsonb
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_events jsonb := metering.events_of_body(p_events);
  v_late text := metering.late_of_body(p_events, p_late);
begin
  return (metering.ingest_batch(v_events, null, array[p_organization_id], array[p_source], array[false], array[v_late], p_max_future))[1];
end;
$$;

-- What stands for events in a body: an array where all is well. Without `set search_path`, so that it is inlined.
create or replace function metering.events_in(p_body jsonb)
returns jsonb
language sql
immutable
parallel safe
as $$
  select case
    when pg_catalog.jsonb_typeof(p_body) <> 'object' then p_body
    when p_body ? 'events' then p_body -> 'events'
    -- One without an id is an event too, so that it is told what it lacks.
    when p_body ? 'id' or pg_catalog.jsonb_typeof(p_body -> 'event') = 'string' then '[]'::jsonb || p_body
  end
$$;

-- The array of events in a body. Raises INVALID_BODY (400).
create or replace function metering.events_of_body(p_body jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
declare
  v_events jsonb := metering.events_in(p_body);
begin
  if v_events is null or jsonb_typeof(v_events) <> 'array' then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_BODY: expected an event, an array of events or {"events": [...]}';
  end if;
  return v_events;
end;
$$;

-- What to do with late events of a body: what p_late says, or what the body says at its top, and null where that is neither 'reject' nor
-- 'adjust': what else p_late may be is not for who sends. Without `set search_path`, so that it is inlined.
create or replace function metering.late_in(p_body jsonb, p_late text)
returns text
language sql
immutable
parallel safe
as $$
  select case
    when p_late = 'adjust' then 'repair'
    when pg_catalog.jsonb_typeof(p_body) <> 'object' or not p_body ? 'events' or p_body ->> 'late' is null then p_late
    when p_body ->> 'late' in ('reject', 'adjust') then p_body ->> 'late'
  end
$$;

-- The same. Raises INVALID_BODY (400).
create or replace function metering.late_of_body(p_body jsonb, p_late text)
returns text
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
declare
  v_late text := metering.late_in(p_body, p_late);
begin
  if v_late is null then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_BODY: late needs to be "reject" or "adjust"';
  end if;
  return v_late;
end;
$$;

alter function metering.record_rejection(text, jsonb, text, text) owner to goldleaves_kernel;
alter function metering.ingest_batch(jsonb, integer[], uuid[], text[], boolean[], text[], interval) owner to goldleaves_kernel;
grant execute on function metering.explain_batch(jsonb, metering.parsed_event[], integer[], uuid[], timestamptz, integer),
  metering.countable(metering.parsed_event[], integer[]), metering.answer(bigint, bigint, jsonb, jsonb) to goldleaves_kernel;
grant execute on function metering.record_rejection(text, jsonb, text, text),
  metering.ingest_batch(jsonb, integer[], uuid[], text[], boolean[], text[], interval),
  metering.ingest_events(jsonb, uuid, text, text, interval), metering.events_in(jsonb), metering.events_of_body(jsonb), metering.late_in(jsonb, text),
  metering.late_of_body(jsonb, text)
  to sidecar, goldleaves_kernel;
