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

-- p_events: an array of events, or {"events": [...]}. p_organization_id: of all of them, or null when each names its own.
-- p_late: what to do with an event of a finalized period: 'reject' it, or 'adjust': count it now and keep when it happened.
-- Membership in a list is asked with `in (select unnest(…))`, which is hashed: `= any (…)` compares with each element, and a batch
-- may have a hundred thousand.
-- Returns {"accepted", "duplicates", "conflicts": [{id, code, message}], "rejected": [{id, code, message}]}.
create or replace function metering.ingest_events(
  p_events jsonb, p_organization_id uuid default null, p_source text default 'api', p_late text default 'reject'
)
returns jsonb
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_events jsonb := case when jsonb_typeof(p_events) = 'object' then p_events -> 'events' else p_events end;
  v_generation integer;
  v_parsed metering.parsed_event[];
  v_now timestamptz;
  v_organizations uuid[];
  v_firsts timestamptz[];
  v_lasts timestamptz[];
  v_locked integer[] := '{}';
  v_new uuid[];
  v_accepted integer;
  v_duplicates integer := 0;
  v_conflicts jsonb := '[]';
  v_rejected jsonb := '[]';
begin
  if v_events is null or jsonb_typeof(v_events) <> 'array' then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_BODY: expected {"events": [...]} or an array of events';
  end if;

  v_generation := metering.recording_generation();
  v_parsed := metering.parse_events(v_events, p_organization_id, p_source, p_late);

  select array_agg(t.organization_id order by t.organization_id)
  into v_organizations
  from (select distinct e.organization_id from unnest(v_parsed) as e where e.problem is null) as t;

  if v_organizations is not null then
    perform billing.share_period_locks(v_organizations);
    v_now := clock_timestamp();

    select
      array_agg(t.first_at order by t.organization_id),
      array_agg(t.last_at order by t.organization_id)
    into v_firsts, v_lasts
    from (
      select
        e.organization_id,
        min(coalesce(e.occurred_at, v_now)) as first_at,
        greatest(max(coalesce(e.occurred_at, v_now)), case when p_late = 'adjust' then v_now end) as last_at
      from unnest(v_parsed) as e
      where e.problem is null
      group by 1
    ) as t;

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

    -- Of equal ids the first that may count does. The keys arrive sorted: unsorted, overlapping batches of many writers deadlock.
    with inserted as (
      insert into metering.event_keys (organization_id, key, fact)
      select distinct on (e.organization_id, e.key) e.organization_id, e.key, e.fact
      from unnest(v_parsed) as e
      where e.problem is null
        and (p_late = 'adjust' or e.position not in (select unnest(v_locked)))
      order by e.organization_id, e.key, e.position
      on conflict do nothing
      returning key
    )
    select coalesce(array_agg(key), '{}') into v_new from inserted;

    if v_new <> '{}' then
      perform metering.ensure_partition(m.month)
      from (
        select distinct date_trunc('month', coalesce(e.occurred_at, v_now) at time zone 'UTC')::date as month
        from unnest(v_parsed) as e
        where e.problem is null
        union
        select date_trunc('month', v_now at time zone 'UTC')::date
        order by 1
      ) as m;

      insert into metering.usage_events (
        organization_id, occurred_at, source, idempotency_key, event_type, event_name, quantity, unit,
        user_id, resource_id, request_id, dimensions, belongs_at, payer_user_id, recorded_generation
      )
      select
        t.organization_id, t.occurred_at, p_source, t.id, t.event_type, t.event_name, t.quantity, t.unit,
        t.user_id, t.resource_id, t.request_id, t.dimensions, t.belongs_at,
        billing.payer(o.billing_user_id, o.billing_start_at, coalesce(t.belongs_at, t.occurred_at)), v_generation
      from (
        select distinct on (e.organization_id, e.key)
          e.organization_id,
          case when e.position in (select unnest(v_locked)) then v_now else coalesce(e.occurred_at, v_now) end as occurred_at,
          e.id,
          case when e.position in (select unnest(v_locked)) then 'adjustment' else 'usage' end as event_type,
          e.event_name,
          e.quantity,
          e.unit,
          e.user_id,
          e.resource_id,
          e.request_id,
          e.dimensions,
          case when e.position in (select unnest(v_locked)) then e.occurred_at end as belongs_at
        from unnest(v_parsed) as e
        where e.key in (select unnest(v_new))
          and (p_late = 'adjust' or e.position not in (select unnest(v_locked)))
        order by e.organization_id, e.key, e.position
      ) as t
      -- Joined to the few, when they are few: inside, the join costs more to plan, for each batch, than it takes to run.
      join tenancy.organizations o on o.id = t.organization_id
      where o.id = any (v_organizations);
    end if;
  end if;

  -- Everything that made no new event, with the reason. Usually there is nothing here.
  v_accepted := coalesce(cardinality(v_new), 0);
  if v_accepted < cardinality(v_parsed) then
    with accepted as materialized (
      select distinct on (e.key) e.position
      from unnest(v_parsed) as e
      where e.key in (select unnest(v_new))
        and (p_late = 'adjust' or e.position not in (select unnest(v_locked)))
      order by e.key, e.position
    ),
    judged as materialized (
      select
        e.position,
        e.id,
        e.organization_id,
        case
          when e.problem is not null then 'INVALID_EVENT'
          when k.key is null then 'BILLING_PERIOD_LOCKED'
          when k.fact <> e.fact then 'IDEMPOTENCY_CONFLICT'
          else 'DUPLICATE'
        end as code,
        e.problem,
        e.occurred_at
      from unnest(v_parsed) as e
      left join metering.event_keys k on k.organization_id = e.organization_id and k.key = e.key
      where e.position not in (select a.position from accepted a)
    ),
    explained as materialized (
      select
        j.position,
        j.id,
        j.organization_id,
        j.code,
        case j.code
          when 'INVALID_EVENT' then format('event %s: %s', j.position, j.problem)
          when 'IDEMPOTENCY_CONFLICT' then 'this id was used before with another event, quantity or resource_id; the first one counts'
          when 'BILLING_PERIOD_LOCKED' then format('the period of %s is finalized', coalesce(j.occurred_at, v_now))
        end as message
      from judged j
    ),
    kept as (
      insert into metering.rejected_events (organization_id, source, code, message, event)
      select x.organization_id, p_source, x.code, x.message, v_events -> x.position
      from explained x
      where x.message is not null
    )
    select
      count(*) filter (where x.code = 'DUPLICATE'),
      coalesce(jsonb_agg(jsonb_build_object('id', x.id, 'code', x.code, 'message', x.message) order by x.position)
        filter (where x.code = 'IDEMPOTENCY_CONFLICT'), '[]'),
      coalesce(jsonb_agg(jsonb_build_object('id', x.id, 'code', x.code, 'message', x.message) order by x.position)
        filter (where x.code in ('INVALID_EVENT', 'BILLING_PERIOD_LOCKED')), '[]')
    into v_duplicates, v_conflicts, v_rejected
    from explained x;
  end if;

  return jsonb_build_object(
    'accepted', v_accepted,
    'duplicates', v_duplicates,
    'conflicts', v_conflicts,
    'rejected', v_rejected
  );
end;
$$;

alter function metering.record_rejection(text, jsonb, text, text) owner to goldleaves_kernel;
alter function metering.ingest_events(jsonb, uuid, text, text) owner to goldleaves_kernel;
grant execute on function metering.record_rejection(text, jsonb, text, text), metering.ingest_events(jsonb, uuid, text, text) to sidecar;
