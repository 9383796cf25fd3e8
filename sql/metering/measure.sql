-- What was used: the reading that summaries, reports, quotas and invoices share. Rolled-up buckets plus what is not rolled up yet, read
-- in one snapshot, so every event is in exactly one of them.

-- {"dimension": ["value", …]} of a filter that names values singly or as a list, without those that are no dimension.
create or replace function metering.dimension_filter(p_filter jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select coalesce(
    jsonb_object_agg(f.name, case jsonb_typeof(f.value) when 'array' then f.value else jsonb_build_array(f.value) end)
      filter (where f.name not in ('meter', 'billing_entity_id', 'billing_entity_type')),
    '{}'
  )
  from jsonb_each(coalesce(p_filter, '{}')) as f (name, value)
$$;

-- The values of one member of a filter as texts; null when it is not there.
create or replace function metering.filter_values(p_filter jsonb, p_name text)
returns text[]
language sql
immutable
parallel safe
set search_path = ''
as $$
  select case jsonb_typeof(p_filter -> p_name)
    when 'array' then array(select jsonb_array_elements_text(p_filter -> p_name))
    else array[p_filter ->> p_name]
  end
  where p_filter ? p_name
$$;

-- Whether a group of the rollups has what a filter of dimensions asks for. Inlined.
create or replace function metering.group_passes(p_filter jsonb, p_groups jsonb)
returns boolean
language sql
immutable
parallel safe
as $$
  select p_filter = '{}'
    or metering.passes(
      p_filter, p_groups, p_groups ->> 'user_id', p_groups ->> 'workspace_id', p_groups ->> 'resource_id', p_groups ->> 'source'
    )
$$;

-- {"dimension": "value", …} that each group has which passes a filter of one value a dimension; else null. Much quicker to ask. A value that was
-- too long for a group is kept as another one, of more than 40 characters.
create or replace function metering.group_asked_for(p_filter jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select case
    when bool_and(jsonb_array_length(f.allowed) = 1 and length(f.allowed ->> 0) <= 40) then jsonb_object_agg(f.name, f.allowed -> 0)
  end
  from jsonb_each(p_filter) as f (name, allowed)
$$;

-- The dimensions asked for, of all that a group has.
create or replace function metering.project(p_groups jsonb, p_group_by text[])
returns jsonb
language sql
stable
parallel safe
as $$
  select case
    when p_group_by = '{}' then '{}'::jsonb
    else (select pg_catalog.jsonb_object_agg(d.name, p_groups -> d.name) from pg_catalog.unnest(p_group_by) as d (name))
  end
$$;

-- Buckets of rollups that a bound lies within: a change of plan, or a report, begins at any moment. They are read from events.
create or replace function metering.cut_buckets(p_organization_id uuid, p_bounds timestamptz[])
returns tstzmultirange
language sql
stable
set search_path = ''
as $$
  select coalesce(range_agg(tstzrange(k.bucket_start, k.bucket_end)), '{}')
  from unnest(p_bounds) as b (at)
  join billing.billing_periods p on p.organization_id = p_organization_id and p.period_start <= b.at and p.period_end > b.at
  cross join lateral (
    select
      metering.bucket_in(b.at, p.period_start, p.timezone) as bucket_start,
      least(
        p.period_end,
        case
          when extract(minute from b.at at time zone p.timezone) = extract(minute from b.at at time zone 'UTC')
            then date_trunc('hour', b.at, 'UTC') + interval '1 hour'
          else metering.quarter_of(b.at) + interval '15 minutes'
        end
      ) as bucket_end
  ) as k
  where isfinite(b.at)
    and k.bucket_start <> b.at
$$;

-- Whether rollups have all that a reading needs, but for buckets that a bound lies within: their groups have each dimension that it
-- filters by, and nothing was voided above them that a greatest, least or latest value would have to be found anew for.
create or replace function metering.rollups_serve(
  p_organization_id uuid, p_bounds timestamptz[], p_dimensions jsonb, p_meters text[], p_position metering.rollup_position
)
returns boolean
language plpgsql
stable
set search_path = ''
as $$
begin
  if p_dimensions <> '{}' and exists (
    select
    from metering.meter_versions v
    where (p_meters is null or v.meter_code = any (p_meters))
      and not v.group_by @> array(select jsonb_object_keys(p_dimensions))
  ) then
    return false;
  end if;
  -- Events of no meter keep no dimensions, and a group that was folded has lost its own.
  if p_dimensions <> '{}' and exists (
    select
    from metering.usage_rollups r
    where r.organization_id = p_organization_id
      and r.grain = 'period'
      and (p_meters is null or r.meter_code = any (p_meters))
      and (
        r.bucket_start >= p_bounds[1] - interval '3 months'
        -- What is stored may have been stored long ago.
        or r.meter_code in (select m.code from metering.meters m where m.aggregation = 'weighted_sum')
      )
      and r.bucket_start < p_bounds[cardinality(p_bounds)]
      and (
        r.meter_version = 0
        or r.groups <> '{}'
        -- The same, asked quickly first: there may be a thousand groups, and as many prices that ask.
        and not r.groups @? '$.* ? (@ <> "other")'
        and r.groups = metering.other_group(r.groups)
      )
  ) then
    return false;
  end if;

  return not metering.is_unrolled(
    p_organization_id, p_bounds[1], p_bounds[cardinality(p_bounds)], p_position,
    array(
      select v.event_name
      from metering.meters m
      join metering.meter_versions v on v.meter_code = m.code
      where m.aggregation in ('max', 'min', 'latest')
        and (p_meters is null or m.code = any (p_meters))
    ),
    'void'
  );
end;
$$;

-- Whether there are events of these names (null: any), and of this type, in a time, that rollups do not have yet. Looks at the rows alone, which is
-- much cheaper than counting them, and for no names at nothing.
create or replace function metering.is_unrolled(
  p_organization_id uuid, p_from timestamptz, p_until timestamptz, p_position metering.rollup_position, p_event_names text[],
  p_event_type text default null
)
returns boolean
language plpgsql
stable
set search_path = ''
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return cardinality(p_event_names) > 0 and exists (
    select
    from metering.usage_events e
    where (e.recorded_generation, e.recorded_xid) >= (p_position.generation, p_position.xid)
      and uuid_hash(e.organization_id) = uuid_hash(p_organization_id)
      and (e.organization_id = p_organization_id) is true
      and (e.event_name = any (p_event_names) or array_position(p_event_names, null) is not null)
      and (p_event_type is null or e.event_type = p_event_type)
      and (e.occurred_at >= p_from and e.occurred_at < p_until) is true
  );
end;
$$;

-- How much of the value that a meter reads is one of its units; over time, of the value for a second. Inlined.
create or replace function metering.value_of_unit(p_aggregation text, p_unit_size numeric)
returns numeric
language sql
immutable
parallel safe
as $$
  select case
    when p_aggregation in ('count', 'unique') then 1
    when p_aggregation = 'weighted_sum' then p_unit_size * 3600
    else p_unit_size
  end
$$;

-- p_bounds: moments in order; bucket n is [p_bounds[n], p_bounds[n + 1]). p_group_by: dimensions; a meter that does not keep one has null
-- there. p_filter: meter, billing_entity_id, billing_entity_type or a dimension, with a value or a list of them; all have to hold.
-- Returns a row for each of bucket, meter, payer and group in which there is something: events (those voided count no more) and quantity, in
-- the meter's unit. metered is false for events that no meter counts; meter_code is then the event's name. A time-weighted meter has a row
-- for each bucket in which something was stored, up to now, paid by who pays at the time, and not by who brought it.
-- For rating, which adds and takes away before it divides: p_as_values has the quantity as the value that the meter reads, below zero too;
-- p_together has no payers, for what is another thing over two of them than the sum of what it is for each (not for meters over time).
-- p_once: {"meter": [bucket, …]}: a unique value counts in the first one of these that has it.
-- jit: a plan over all partitions looks expensive and is not. A server that can compile took two seconds for it; so said wherever that is read.
create or replace function metering.measure(
  p_organization_id uuid, p_bounds timestamptz[], p_group_by text[] default '{}', p_filter jsonb default '{}',
  p_as_values boolean default false, p_together boolean default false, p_once jsonb default '{}'
)
returns table (bucket integer, meter_code text, metered boolean, billing_entity_id uuid, groups jsonb, events bigint, quantity numeric)
language plpgsql
stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_position metering.rollup_position;
  v_first timestamptz := p_bounds[1];
  v_last timestamptz := p_bounds[cardinality(p_bounds)];
  v_group_by text[] := coalesce(p_group_by, '{}');
  v_dimensions jsonb := metering.dimension_filter(p_filter);
  v_group jsonb := metering.group_asked_for(v_dimensions);
  v_meters text[] := metering.filter_values(p_filter, 'meter');
  v_entities uuid[] := metering.filter_values(p_filter, 'billing_entity_id')::uuid[];
  v_entity_types text[] := metering.filter_values(p_filter, 'billing_entity_type');
  v_grain text;
  v_by_time tstzmultirange;
begin
  select * into strict v_position from metering.rollup_position;
  v_grain := case
    -- Where verification found rollups that are not what their events say.
    when current_setting('goldleaves.measure_from', true) = 'events' then null
    when not metering.rollups_serve(p_organization_id, p_bounds, v_dimensions, v_meters, v_position) then null
    when cardinality(p_bounds) = 2 and exists (
      select
      from billing.billing_periods p
      where p.organization_id = p_organization_id and p.period_start = v_first and p.period_end = v_last
    ) then 'period'
    else 'hour'
  end;
  v_by_time := case
    when v_grain is null then tstzmultirange(tstzrange(v_first, v_last))
    when v_grain = 'hour' then metering.cut_buckets(p_organization_id, p_bounds) * tstzmultirange(tstzrange(v_first, v_last))
    else '{}'
  end;

  return query
    with tail as materialized (
      select
        t.*, case when v_group_by = '{}' then '{}' else metering.groups_of(t.group_by, t.group_values) end as groups, p.period_start
      from (
        select
          width_bucket(e.occurred_at, p_bounds) as bucket, e.meter_code, e.meter_version, e.billing_entity_id, e.max_groups,
          case when v_group_by <> '{}' then e.group_by end as group_by,
          case when v_group_by <> '{}' then e.group_values end as group_values,
          min(e.occurred_at) as first_at,
          sum(e.events)::bigint as events,
          sum(e.value) as value,
          max(e.value) filter (where e.aggregation = 'max' and e.event_type <> 'void') as max_value,
          min(e.value) filter (where e.aggregation = 'min' and e.event_type <> 'void') as min_value,
          max(metering.latest_of(e.occurred_at, e.id, e.value)) filter (where e.aggregation = 'latest' and e.event_type = 'usage') as latest
        from metering.live_events(p_organization_id, v_first, v_last, v_meters, v_by_time, v_position) e
        where (v_dimensions = '{}' or metering.passes(v_dimensions, e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source))
        group by 1, 2, 3, 4, 5, 6, 7
      ) as t
      -- Whose groups may have no place, as the rollup will decide.
      left join billing.billing_periods p
        on v_group_by <> '{}'
        and v_grain is not null
        and t.group_by <> '{}'
        and p.organization_id = p_organization_id
        and p.period_start <= t.first_at
        and p.period_end > t.first_at
    ),
    residents as materialized (
      select k.meter_code, k.meter_version, k.period_start, r.groups
      from (select distinct t.meter_code, t.meter_version, t.period_start from tail t where t.period_start is not null) as k
      cross join lateral metering.groups_in_place(p_organization_id, k.meter_code, k.meter_version, k.period_start) as r (groups)
    ),
    taken as materialized (
      select r.meter_code, r.meter_version, r.period_start, count(*) as places from residents r group by 1, 2, 3
    ),
    partials as (
      -- What is rolled up.
      select
        width_bucket(r.bucket_start, p_bounds) as bucket, r.meter_code, r.meter_version, r.billing_entity_id, r.groups, r.events, r.value,
        r.max_value, r.min_value, r.latest_value, r.latest_at, r.latest_id
      from metering.usage_rollups r
      where v_grain is not null
        and r.organization_id = p_organization_id
        and r.grain = v_grain
        and r.bucket_start >= v_first
        and r.bucket_start < v_last
        and not r.bucket_start <@ v_by_time
        and (v_meters is null or r.meter_code = any (v_meters))
        and (v_group is null or r.groups @> v_group)
        and metering.group_passes(v_dimensions, r.groups)
      union all
      -- What is not, or everything.
      select
        t.bucket, t.meter_code, t.meter_version, t.billing_entity_id,
        case
          when t.period_start is null
            or (t.meter_code, t.meter_version, t.period_start, t.groups) in (
              select r.meter_code, r.meter_version, r.period_start, r.groups
              from residents r
            )
            or t.max_groups > coalesce((
              select f.places
              from taken f
              where f.meter_code = t.meter_code and f.meter_version = t.meter_version and f.period_start = t.period_start
            ), 0)
            then t.groups
          else metering.other_group(t.groups)
        end,
        t.events, t.value, t.max_value, t.min_value, substr(t.latest, 57)::numeric, metering.at_of(t.latest), substr(t.latest, 21, 36)::uuid
      from tail t
    ),
    added as (
      select
        p.bucket, p.meter_code, p.meter_version > 0 as metered,
        case when not p_together then p.billing_entity_id end as billing_entity_id,
        -- Said here, too: the function is not inlined, and hours have thousands of groups.
        case when v_group_by = '{}' then '{}' else metering.project(p.groups, v_group_by) end as groups,
        sum(p.events)::bigint as events,
        sum(p.value) as value,
        max(p.max_value) as max_value,
        min(p.min_value) as min_value,
        -- Not the first of them in order: thousands of hours would be sorted for it.
        substr(max(metering.latest_of(p.latest_at, p.latest_id, p.latest_value)) filter (where p.latest_at is not null), 57)::numeric as latest_value
      from partials p
      group by 1, 2, 3, 4, 5
    )
    select
      a.bucket, a.meter_code, a.metered, a.billing_entity_id, a.groups, a.events,
      case
        when p_as_values then trim_scale(v.value)
        else trim_scale(greatest(
          v.value / coalesce(metering.value_of_unit(m.aggregation, m.unit_size), 1), case when m.allow_negative then 0 end
        ))
      end
    from added a
    left join metering.meters m on a.metered and m.code = a.meter_code
    cross join lateral (
      select coalesce(
        case m.aggregation
          when 'count' then a.events
          when 'max' then a.max_value
          when 'min' then a.min_value
          when 'latest' then a.latest_value
          else a.value
        end,
        0
      )
    ) as v (value)
    where m.aggregation is distinct from 'unique'
      and m.aggregation is distinct from 'weighted_sum'
      and (v_entities is null or a.billing_entity_id = any (v_entities))
      and (v_entity_types is null or case a.billing_entity_id when p_organization_id then 'organization' else 'user' end = any (v_entity_types));

  if exists (select from metering.meters m where m.aggregation = 'unique' and (v_meters is null or m.code = any (v_meters))) then
    return query
      select u.bucket, u.meter_code, true, u.billing_entity_id, u.groups, u.events, u.quantity
      from metering.measure_unique(
        p_organization_id, p_bounds, v_group_by, v_dimensions, v_meters, v_grain, v_by_time, v_position, p_together, p_once
      ) u
      where (v_entities is null or u.billing_entity_id = any (v_entities))
        and (v_entity_types is null or case u.billing_entity_id when p_organization_id then 'organization' else 'user' end = any (v_entity_types));
  end if;
  if exists (select from metering.meters m where m.aggregation = 'weighted_sum' and (v_meters is null or m.code = any (v_meters))) then
    return query
      select w.bucket, w.meter_code, true, w.billing_entity_id, w.groups, w.events, w.quantity
      from metering.measure_over_time(
        p_organization_id, p_bounds, v_group_by, v_dimensions, v_meters, v_grain is not null, v_position, p_as_values
      ) w
      where (v_entities is null or w.billing_entity_id = any (v_entities))
        and (v_entity_types is null or case w.billing_entity_id when p_organization_id then 'organization' else 'user' end = any (v_entity_types));
  end if;
end;
$$;

-- Events of a time that rollups do not have yet; of p_by_time those that they have too, and then without what was voided, where voiding is
-- not adding the opposite.
-- Inlined, so that only the half is run that is asked for.
create or replace function metering.live_events(
  p_organization_id uuid, p_from timestamptz, p_until timestamptz, p_meters text[], p_by_time tstzmultirange, p_position metering.rollup_position
)
returns setof metering.counted_events
language sql
stable
as $$
  select s.*
  from metering.counted_since(p_position.generation, p_position.xid, p_organization_id, p_from, p_until, p_meters) s
  where not p_by_time @> tstzrange(p_from, p_until)
    and not s.occurred_at <@ p_by_time
  union all
  select e.*
  from unnest(p_by_time) as r (at)
  cross join lateral metering.counted_by_time(p_organization_id, lower(r.at), upper(r.at), null, null, p_meters) e
  where e.aggregation not in ('max', 'min', 'latest')
    or case e.event_type
      when 'void' then e.belongs_at is not null
      else not exists (
        select
        from metering.usage_events v
        where v.organization_id = e.organization_id
          and v.occurred_at = e.occurred_at
          and v.corrects = e.id
          and v.event_type = 'void'
      )
    end
$$;

-- Groups that have a place of their own in a period. What is not rolled up keeps its group when it is one of them, or there is room, else it
-- is "other", as the rollup will decide. Read once for all that is not rolled up: it may be as many groups as events.
create or replace function metering.groups_in_place(
  p_organization_id uuid, p_meter_code text, p_meter_version integer, p_period_start timestamptz
)
returns setof jsonb
language sql
stable
set search_path = ''
as $$
  select distinct r.groups
  from metering.usage_rollups r
  where r.organization_id = p_organization_id
    and r.grain = 'period'
    and r.meter_code = p_meter_code
    and r.bucket_start = p_period_start
    and r.meter_version = p_meter_version
    and r.groups <> metering.other_group(r.groups)
$$;

-- Unique values: those that have an event which was not voided, of all buckets together.
create or replace function metering.measure_unique(
  p_organization_id uuid, p_bounds timestamptz[], p_group_by text[], p_dimensions jsonb, p_meters text[], p_grain text,
  p_by_time tstzmultirange, p_position metering.rollup_position, p_together boolean, p_once jsonb
)
returns table (bucket integer, meter_code text, billing_entity_id uuid, groups jsonb, events bigint, quantity numeric)
language sql
stable
set search_path = ''
as $$
  with tail as materialized (
    select
      t.*, case when p_group_by = '{}' then '{}' else metering.groups_of(t.group_by, t.group_values) end as groups, p.period_start
    from (
      select
        width_bucket(e.occurred_at, p_bounds) as bucket, e.meter_code, e.meter_version, e.billing_entity_id, e.group_by, e.group_values, e.max_groups, e.value_hash,
        min(e.occurred_at) as first_at,
        sum(e.events)::bigint as events
      from metering.live_events(p_organization_id, p_bounds[1], p_bounds[cardinality(p_bounds)], p_meters, p_by_time, p_position) e
      where e.aggregation = 'unique'
        and e.value_hash is not null
        and (p_dimensions = '{}' or metering.passes(p_dimensions, e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source))
      group by 1, 2, 3, 4, 5, 6, 7, 8
    ) as t
    left join billing.billing_periods p
      on p_group_by <> '{}'
      and p_grain is not null
      and t.group_by <> '{}'
      and p.organization_id = p_organization_id
      and p.period_start <= t.first_at
      and p.period_end > t.first_at
  ),
  residents as materialized (
    select k.meter_code, k.meter_version, k.period_start, r.groups
    from (select distinct t.meter_code, t.meter_version, t.period_start from tail t where t.period_start is not null) as k
    cross join lateral metering.groups_in_place(p_organization_id, k.meter_code, k.meter_version, k.period_start) as r (groups)
  ),
  taken as materialized (
    select r.meter_code, r.meter_version, r.period_start, count(*) as places from residents r group by 1, 2, 3
  ),
  kept as (
    select
      width_bucket(u.bucket_start, p_bounds) as bucket, u.meter_code, u.billing_entity_id, case when p_group_by = '{}' then '{}' else metering.project(u.groups, p_group_by) end as groups,
      u.value_hash, u.events
    from metering.unique_values u
    where u.organization_id = p_organization_id
      and u.grain = p_grain
      and u.bucket_start >= p_bounds[1]
      and u.bucket_start < p_bounds[cardinality(p_bounds)]
      and not u.bucket_start <@ p_by_time
      and (p_meters is null or u.meter_code = any (p_meters))
      and metering.group_passes(p_dimensions, u.groups)
    union all
    select
      t.bucket, t.meter_code, t.billing_entity_id,
      metering.project(
        case
          when t.period_start is null
            or (t.meter_code, t.meter_version, t.period_start, t.groups) in (
              select r.meter_code, r.meter_version, r.period_start, r.groups
              from residents r
            )
            or t.max_groups > coalesce((
              select f.places
              from taken f
              where f.meter_code = t.meter_code and f.meter_version = t.meter_version and f.period_start = t.period_start
            ), 0)
            then t.groups
          else metering.other_group(t.groups)
        end,
        p_group_by
      ),
      t.value_hash, t.events
    from tail t
  ),
  seen as (
    select
      k.bucket, k.meter_code, case when not p_together then k.billing_entity_id end as billing_entity_id, k.groups, k.value_hash,
      sum(k.events) as events
    from kept k
    group by 1, 2, 3, 4, 5
  ),
  firsts as (
    select s.meter_code, s.billing_entity_id, s.groups, s.value_hash, min(s.bucket) as bucket
    from seen s
    where p_once <> '{}'
      and p_once -> s.meter_code @> to_jsonb(s.bucket)
      and s.events > 0
    group by 1, 2, 3, 4
  )
  select
    s.bucket, s.meter_code, s.billing_entity_id, s.groups, sum(s.events)::bigint,
    count(*) filter (where s.events > 0 and f.bucket is null)
  from seen s
  left join firsts f
    on f.meter_code = s.meter_code
    and f.billing_entity_id is not distinct from s.billing_entity_id
    and f.groups = s.groups
    and f.value_hash = s.value_hash
    and f.bucket < s.bucket
    and p_once -> s.meter_code @> to_jsonb(s.bucket)
  group by 1, 2, 3, 4
$$;

-- Levels over time, in unit hours: what there was when a bucket began for as long as the bucket is, and each change for the rest of it.
-- Somebody else may begin to pay within the bounds: that is a bound as well. Where rollups do not serve, everything is read from the events.
create or replace function metering.measure_over_time(
  p_organization_id uuid, p_bounds timestamptz[], p_group_by text[], p_dimensions jsonb, p_meters text[], p_rolled_up boolean,
  p_position metering.rollup_position, p_as_values boolean
)
returns table (bucket integer, meter_code text, billing_entity_id uuid, groups jsonb, events bigint, quantity numeric)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_organization tenancy.organizations;
  v_now timestamptz := statement_timestamp();
  v_meters text[];
  v_bounds timestamptz[];
  v_rolled_up boolean := p_rolled_up;
  v_by_time tstzmultirange;
begin
  select * into v_organization from tenancy.organizations where id = p_organization_id;
  select array_agg(m.code) into v_meters
  from metering.meters m
  where m.aggregation = 'weighted_sum'
    and (p_meters is null or m.code = any (p_meters));
  -- Nothing was ever stored: the usual case where nobody bills storage.
  if v_meters is null or p_rolled_up
    and not exists (
      select from metering.usage_rollups r where r.organization_id = p_organization_id and r.grain = 'period' and r.meter_code = any (v_meters)
    )
    and not metering.is_unrolled(
      p_organization_id, '-infinity', p_bounds[cardinality(p_bounds)], p_position,
      array(select v.event_name from metering.meter_versions v where v.meter_code = any (v_meters))
    )
  then
    return;
  end if;

  v_bounds := p_bounds;
  if v_organization.billing_start_at > p_bounds[1] and v_organization.billing_start_at < p_bounds[cardinality(p_bounds)]
    and v_organization.billing_start_at <> all (p_bounds)
  then
    v_bounds := array(select b from unnest(p_bounds || v_organization.billing_start_at) as b order by b);
    v_rolled_up := v_rolled_up and metering.rollups_serve(p_organization_id, v_bounds, p_dimensions, v_meters, p_position);
  end if;
  v_by_time := tstzmultirange(tstzrange('-infinity', v_bounds[cardinality(v_bounds)]));
  if v_rolled_up then
    v_by_time := v_by_time * metering.cut_buckets(p_organization_id, v_bounds);
  end if;

  return query
    with bounds as (
      select
        b.n::integer as n,
        v_bounds[b.n] as bucket_start,
        -- What lies ahead is not stored yet.
        least(v_bounds[b.n + 1], greatest(v_now, v_bounds[b.n])) as bucket_end,
        width_bucket(v_bounds[b.n], p_bounds) as bucket,
        coalesce(billing.payer(v_organization.billing_user_id, v_organization.billing_start_at, v_bounds[b.n]), p_organization_id) as billing_entity_id
      from generate_series(1, cardinality(v_bounds) - 1) as b (n)
    ),
    changes as (
      -- Changes before the first bound, as the sums of whole periods and of the buckets after the last of them …
      select 0 as n, r.meter_code, metering.project(r.groups, p_group_by) as groups, r.value, r.events, null::timestamptz as since, null::numeric as moment
      from metering.usage_rollups r
      left join billing.billing_periods p
        on p.organization_id = r.organization_id and p.period_start <= v_bounds[1] and p.period_end > v_bounds[1]
      where v_rolled_up
        and r.organization_id = p_organization_id
        and r.meter_code = any (v_meters)
        and r.meter_version > 0
        and case r.grain
          when 'period' then r.bucket_start < coalesce(p.period_start, v_bounds[1])
          else p.period_start is not null and r.bucket_start >= p.period_start and r.bucket_start < v_bounds[1] and not r.bucket_start <@ v_by_time
        end
        and metering.group_passes(p_dimensions, r.groups)
      union all
      -- … those between the bounds …
      select
        width_bucket(r.bucket_start, v_bounds), r.meter_code, metering.project(r.groups, p_group_by), r.value, r.events, r.bucket_start, r.moment
      from metering.usage_rollups r
      where v_rolled_up
        and r.organization_id = p_organization_id
        and r.grain = 'hour'
        and r.meter_code = any (v_meters)
        and r.meter_version > 0
        and r.bucket_start >= v_bounds[1]
        and r.bucket_start < v_bounds[cardinality(v_bounds)]
        and not r.bucket_start <@ v_by_time
        and metering.group_passes(p_dimensions, r.groups)
      union all
      -- … and what is not rolled up, or lies in a bucket that a bound cuts.
      select width_bucket(e.occurred_at, v_bounds), e.meter_code, metering.project(metering.groups_of(e.group_by, e.group_values), p_group_by), e.value, e.events, e.occurred_at, 0
      from metering.live_events(
        p_organization_id, '-infinity', v_bounds[cardinality(v_bounds)], v_meters, v_by_time, p_position
      ) e
      where e.meter_version > 0
        and (p_dimensions = '{}' or metering.passes(p_dimensions, e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source))
      union all
      -- Less what lies ahead, as clocks that are fast send it: until then it takes nothing away, and adds nothing.
      select
        width_bucket(e.occurred_at, v_bounds), e.meter_code, metering.project(metering.groups_of(e.group_by, e.group_values), p_group_by), 0, 0, e.occurred_at,
        e.value * extract(epoch from v_now - e.occurred_at)
      from metering.counted_by_time(p_organization_id, v_now, v_bounds[cardinality(v_bounds)], null, null, v_meters) e
      where e.meter_version > 0
        and (p_dimensions = '{}' or metering.passes(p_dimensions, e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source))
    ),
    steps as (
      select
        c.meter_code, c.groups, c.n,
        sum(c.value) as value,
        sum(c.events) as events,
        sum(c.value * extract(epoch from b.bucket_end - c.since) - c.moment) filter (where b.bucket_end > b.bucket_start) as unit_seconds
      from changes c
      left join bounds b on b.n = c.n
      group by 1, 2, 3
    ),
    levels as (
      select
        k.meter_code, k.groups, b.bucket, b.billing_entity_id,
        coalesce(s.events, 0) as events,
        coalesce(sum(s.value) over (partition by k.meter_code, k.groups order by b.n rows between unbounded preceding and 1 preceding), 0)
          * extract(epoch from b.bucket_end - b.bucket_start) + coalesce(s.unit_seconds, 0) as unit_seconds
      from (select distinct c.meter_code, c.groups from steps c) as k
      cross join (
        select * from bounds
        union all
        select 0, null, null, null, null
      ) as b
      left join steps s on s.meter_code = k.meter_code and s.groups = k.groups and s.n = b.n
    )
    select
      s.bucket, s.meter_code, s.billing_entity_id, s.groups, sum(s.events)::bigint,
      case
        when p_as_values then trim_scale(sum(s.unit_seconds))
        else trim_scale(greatest(
          sum(s.unit_seconds) / metering.value_of_unit(m.aggregation, m.unit_size), case when m.allow_negative then 0 end
        ))
      end
    from levels s
    join metering.meters m on m.code = s.meter_code
    where s.bucket is not null
    group by s.bucket, s.meter_code, s.billing_entity_id, s.groups, m.aggregation, m.unit_size, m.allow_negative
    having sum(s.events) <> 0 or sum(s.unit_seconds) <> 0;
end;
$$;

grant execute on function metering.cut_buckets(uuid, timestamptz[]), metering.dimension_filter(jsonb), metering.filter_values(jsonb, text),
  metering.group_passes(jsonb, jsonb), metering.group_asked_for(jsonb), metering.project(jsonb, text[]),
  metering.rollups_serve(uuid, timestamptz[], jsonb, text[], metering.rollup_position),
  metering.is_unrolled(uuid, timestamptz, timestamptz, metering.rollup_position, text[], text),
  metering.value_of_unit(text, numeric), metering.measure(uuid, timestamptz[], text[], jsonb, boolean, boolean, jsonb),
  metering.live_events(uuid, timestamptz, timestamptz, text[], tstzmultirange, metering.rollup_position),
  metering.groups_in_place(uuid, text, integer, timestamptz),
  metering.measure_unique(uuid, timestamptz[], text[], jsonb, text[], text, tstzmultirange, metering.rollup_position, boolean, jsonb),
  metering.measure_over_time(uuid, timestamptz[], text[], jsonb, text[], boolean, metering.rollup_position, boolean) to goldleaves_kernel;
