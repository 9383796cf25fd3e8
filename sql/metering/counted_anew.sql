-- What rollups would say if they were made anew, from nothing but the events: verification compares it with what rollups do say.

-- How long the buckets of a time are: see metering.bucket_in().
create or replace function metering.bucket_length(p_start timestamptz, p_end timestamptz, p_timezone text)
returns interval
language sql
stable
set search_path = ''
as $$
  select case
    when bool_and(extract(minute from q.at at time zone p_timezone) = extract(minute from q.at at time zone 'UTC')) then interval '1 hour'
    else interval '15 minutes'
  end
  from generate_series(metering.quarter_of(p_start), p_end, interval '15 minutes') as q (at)
$$;

-- Of a billing period, in one pass over its events. grain: hour, what rollups have by their position; tail, what they have not taken yet.
-- A group that has no place in the rollups of the period is "other" there.
create or replace function metering.counted_anew(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_timezone text
)
returns setof metering.usage_rollups
language plpgsql
stable
set search_path = ''
-- A million rows are not to be sorted for a few thousand sums, however many groups the planner expects.
set enable_sort = off
set work_mem = '64MB'
as $$
declare
  v_position metering.rollup_position;
  v_length interval := metering.bucket_length(p_period_start, p_period_end, p_timezone);
begin
  select * into strict v_position from metering.rollup_position;
  return query
    with voided as materialized (
      select v.corrects, v.occurred_at
      from metering.usage_events v
      where v.organization_id = p_organization_id
        and v.occurred_at >= p_period_start
        and v.occurred_at < p_period_end
        and v.event_type = 'void'
        and (v.recorded_generation, v.recorded_xid) < (v_position.generation, v_position.xid)
    ),
    binned as materialized (
      select
        case when (c.recorded_generation, c.recorded_xid) < (v_position.generation, v_position.xid) then 'hour' else 'tail' end as grain,
        date_bin(v_length, c.occurred_at, '2000-01-01 00:00+00') as bin,
        c.meter_code, c.meter_version, c.billing_entity_id, c.group_values,
        sum(c.events) as events,
        coalesce(sum(c.value), 0) as value,
        sum(c.digest) as digest,
        sum(
          c.value * extract(epoch from c.occurred_at - date_bin(v_length, c.occurred_at, '2000-01-01 00:00+00'))
        ) filter (where c.aggregation = 'weighted_sum') as moment,
        max(c.value) filter (where s.stands and c.aggregation = 'max') as max_value,
        min(c.value) filter (where s.stands and c.aggregation = 'min') as min_value,
        max(metering.latest_of(c.occurred_at, c.id, c.value))
          filter (where s.stands and c.aggregation = 'latest' and c.event_type = 'usage') as latest
      from metering.digested_events c
      cross join lateral (
        select case
          when c.aggregation not in ('max', 'min', 'latest') or c.event_type = 'void' then false
          else (c.id, c.occurred_at) not in (select v.corrects, v.occurred_at from voided v)
        end as stands
      ) as s
      where c.organization_id = p_organization_id
        and c.occurred_at >= p_period_start
        and c.occurred_at < p_period_end
      group by 1, 2, 3, 4, 5, 6
    ),
    placed as (
      select
        b.*,
        metering.groups_of(coalesce(v.group_by, '{}'), b.group_values) as groups,
        metering.bucket_in(metering.quarter_of(b.bin), p_period_start, p_timezone) as bucket_start
      from binned b
      left join metering.meter_versions v on v.meter_code = b.meter_code and v.version = b.meter_version
    ),
    kept as (
      select
        p.*,
        case
          when p.groups = '{}' then p.groups
          when (p.meter_code, p.meter_version, p.groups) in (
            select r.meter_code, r.meter_version, r.groups
            from metering.usage_rollups r
            where r.organization_id = p_organization_id
              and r.grain = 'period'
              and r.bucket_start = p_period_start
          ) then p.groups
          else metering.other_group(p.groups)
        end as kept_groups
      from placed p
    ),
    summed as (
      select
        k.grain, k.meter_code, k.bucket_start, k.meter_version, k.billing_entity_id, k.kept_groups,
        sum(k.events)::bigint as events,
        sum(k.value) as value,
        sum(k.moment + k.value * extract(epoch from k.bin - k.bucket_start)) as moment,
        max(k.max_value) as max_value,
        min(k.min_value) as min_value,
        max(k.latest) as latest,
        sum(k.digest) as digest
      from kept k
      group by 1, 2, 3, 4, 5, 6
    )
    select
      p_organization_id, s.grain, s.meter_code, s.bucket_start, s.meter_version, s.billing_entity_id, s.kept_groups, s.events, s.value, s.moment,
      s.max_value, s.min_value, substr(s.latest, 57)::numeric, metering.at_of(s.latest), substr(s.latest, 21, 36)::uuid, s.digest
    from summed s;
end;
$$;

-- Where rollups of a billing period are not what p_anew, from metering.counted_anew(), says: hours that differ from their events, and
-- periods (bucket_start is theirs) that differ from the sum of their hours. rolled_* is what the rollup has.
create or replace function metering.differing_rollups(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_anew metering.usage_rollups[]
)
returns table (
  grain text, meter_code text, bucket_start timestamptz, groups jsonb,
  rolled_events bigint, rolled_value numeric, events bigint, value numeric
)
language sql
stable
set search_path = ''
as $$
  with rolled as materialized (
    select r.*
    from metering.usage_rollups r
    where r.organization_id = p_organization_id
      and r.grain = 'hour'
      and r.bucket_start >= p_period_start
      and r.bucket_start < p_period_end
  ),
  of_period as (
    select r.*
    from metering.usage_rollups r
    where r.organization_id = p_organization_id
      and r.grain = 'period'
      and r.bucket_start = p_period_start
  ),
  hours as (
    select
      r.meter_code, r.meter_version, r.billing_entity_id, r.groups,
      sum(r.events)::bigint as events,
      sum(r.value) as value,
      sum(r.moment + r.value * extract(epoch from r.bucket_start - p_period_start)) as moment,
      max(r.max_value) as max_value,
      min(r.min_value) as min_value,
      max(r.latest_at) as latest_at,
      case when count(*) = count(r.digest) then sum(r.digest) end as digest
    from rolled r
    group by 1, 2, 3, 4
  )
  select
    'hour', coalesce(r.meter_code, a.meter_code), coalesce(r.bucket_start, a.bucket_start), coalesce(r.groups, a.groups),
    coalesce(r.events, 0), coalesce(r.value, 0), coalesce(a.events, 0), coalesce(a.value, 0)
  from rolled r
  full join (select u.* from unnest(p_anew) u where u.grain = 'hour') as a
    on a.meter_code = r.meter_code
    and a.bucket_start = r.bucket_start
    and a.meter_version = r.meter_version
    and a.billing_entity_id = r.billing_entity_id
    and a.groups = r.groups
  where (r.events, r.value, r.moment, r.max_value, r.min_value, r.latest_value, r.latest_at, r.latest_id)
      is distinct from (a.events, a.value, a.moment, a.max_value, a.min_value, a.latest_value, a.latest_at, a.latest_id)
    -- Rollups of before digests have none.
    or r.digest <> a.digest
  union all
  select
    'period', coalesce(p.meter_code, h.meter_code), p_period_start, coalesce(p.groups, h.groups),
    coalesce(p.events, 0), coalesce(p.value, 0), coalesce(h.events, 0), coalesce(h.value, 0)
  from of_period p
  full join hours h
    on h.meter_code = p.meter_code
    and h.meter_version = p.meter_version
    and h.billing_entity_id = p.billing_entity_id
    and h.groups = p.groups
  where (p.events, p.value, p.moment, p.max_value, p.min_value, p.latest_at)
      is distinct from (h.events, h.value, h.moment, h.max_value, h.min_value, h.latest_at)
    or p.digest <> h.digest
  union all
  select * from metering.differing_values(p_organization_id, p_period_start, p_period_end, p_anew)
  union all
  select * from metering.differing_levels(p_organization_id, p_period_start)
$$;

-- The same for the values of unique meters, one row an hour or period.
create or replace function metering.differing_values(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_anew metering.usage_rollups[]
)
returns table (
  grain text, meter_code text, bucket_start timestamptz, groups jsonb,
  rolled_events bigint, rolled_value numeric, events bigint, value numeric
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_position metering.rollup_position;
  v_meters text[] := array(select m.code from metering.meters m where m.aggregation = 'unique');
  v_timezone text;
begin
  if not exists (select from unnest(p_anew) a where a.meter_code = any (v_meters)) and not exists (
    select
    from metering.unique_values u
    where u.organization_id = p_organization_id
      and u.grain = 'period'
      and u.meter_code = any (v_meters)
      and u.bucket_start = p_period_start
  ) then
    return;
  end if;
  select * into strict v_position from metering.rollup_position;
  select p.timezone into v_timezone
  from billing.billing_periods p
  where p.organization_id = p_organization_id and p.period_start = p_period_start;

  return query
    with kept as materialized (
      select u.*
      from metering.unique_values u
      where u.organization_id = p_organization_id
        and u.meter_code = any (v_meters)
        and case u.grain
          when 'period' then u.bucket_start = p_period_start
          else u.bucket_start >= p_period_start and u.bucket_start < p_period_end
        end
    ),
    seen as (
      select
        e.meter_code, e.bucket_start, e.meter_version, e.billing_entity_id,
        case
          when e.groups = '{}' then e.groups
          when (e.meter_code, e.meter_version, e.groups) in (
            select r.meter_code, r.meter_version, r.groups
            from metering.usage_rollups r
            where r.organization_id = p_organization_id
              and r.grain = 'period'
              and r.bucket_start = p_period_start
          ) then e.groups
          else metering.other_group(e.groups)
        end as groups,
        e.value_hash,
        sum(e.events)::bigint as events
      from (
        select
          c.meter_code, c.meter_version, c.billing_entity_id, c.value_hash, c.events,
          metering.groups_of(c.group_by, c.group_values) as groups,
          metering.bucket_in(metering.quarter_of(c.occurred_at), p_period_start, coalesce(v_timezone, 'UTC')) as bucket_start
        from metering.counted_by_time(p_organization_id, p_period_start, p_period_end, v_position.generation, v_position.xid, v_meters) c
        where c.value_hash is not null
      ) as e
      group by 1, 2, 3, 4, 5, 6
    ),
    of_period as (
      select k.meter_code, k.meter_version, k.billing_entity_id, k.groups, k.value_hash, sum(k.events)::bigint as events
      from kept k
      where k.grain = 'hour'
      group by 1, 2, 3, 4, 5
    ),
    differing as (
      select
        'hour' as grain, coalesce(k.meter_code, s.meter_code) as meter_code, coalesce(k.bucket_start, s.bucket_start) as bucket_start,
        coalesce(k.groups, s.groups) as groups, coalesce(k.events, 0) as rolled_events, coalesce(s.events, 0) as events
      from (select * from kept h where h.grain = 'hour') as k
      full join seen s
        on s.meter_code = k.meter_code
        and s.bucket_start = k.bucket_start
        and s.meter_version = k.meter_version
        and s.billing_entity_id = k.billing_entity_id
        and s.groups = k.groups
        and s.value_hash = k.value_hash
      where k.events is distinct from s.events
      union all
      select
        'period', coalesce(k.meter_code, s.meter_code), p_period_start, coalesce(k.groups, s.groups),
        coalesce(k.events, 0), coalesce(s.events, 0)
      from (select * from kept h where h.grain = 'period') as k
      full join of_period s
        on s.meter_code = k.meter_code
        and s.meter_version = k.meter_version
        and s.billing_entity_id = k.billing_entity_id
        and s.groups = k.groups
        and s.value_hash = k.value_hash
      where k.events is distinct from s.events
    )
    select
      d.grain, d.meter_code, d.bucket_start, d.groups,
      sum(d.rolled_events)::bigint, (count(*) filter (where d.rolled_events > 0))::numeric,
      sum(d.events)::bigint, (count(*) filter (where d.events > 0))::numeric
    from differing d
    group by 1, 2, 3, 4;
end;
$$;

-- The same for what was stored before a billing period, where meters weigh it with time: the period begins with that level.
create or replace function metering.differing_levels(p_organization_id uuid, p_period_start timestamptz)
returns table (
  grain text, meter_code text, bucket_start timestamptz, groups jsonb,
  rolled_events bigint, rolled_value numeric, events bigint, value numeric
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_position metering.rollup_position;
  -- All events of the organization are read for them: only where somebody pays for it.
  v_meters text[] := array(
    select m.code
    from metering.meters m
    where m.aggregation = 'weighted_sum'
      and exists (select from billing.prices p where p.meter_code = m.code)
  );
begin
  if v_meters = '{}' then
    return;
  end if;
  select * into strict v_position from metering.rollup_position;
  return query
    with rolled as (
      select r.meter_code, sum(r.events)::bigint as events, sum(r.value) as value
      from metering.usage_rollups r
      where r.organization_id = p_organization_id
        and r.grain = 'period'
        and r.meter_code = any (v_meters)
        and r.bucket_start < p_period_start
        and r.meter_version > 0
      group by 1
    ),
    counted as (
      select c.meter_code, sum(c.events)::bigint as events, sum(c.value) as value
      from metering.counted_by_time(p_organization_id, '-infinity', p_period_start, v_position.generation, v_position.xid, v_meters) c
      where c.meter_version > 0
      group by 1
    )
    select
      'before', coalesce(r.meter_code, c.meter_code), p_period_start, '{}'::jsonb,
      coalesce(r.events, 0), coalesce(r.value, 0), coalesce(c.events, 0), coalesce(c.value, 0)
    from rolled r
    full join counted c on c.meter_code = r.meter_code
    where (coalesce(r.events, 0), coalesce(r.value, 0)) <> (coalesce(c.events, 0), coalesce(c.value, 0));
end;
$$;

grant execute on function metering.bucket_length(timestamptz, timestamptz, text),
  metering.counted_anew(uuid, timestamptz, timestamptz, text),
  metering.differing_rollups(uuid, timestamptz, timestamptz, metering.usage_rollups[]),
  metering.differing_values(uuid, timestamptz, timestamptz, metering.usage_rollups[]),
  metering.differing_levels(uuid, timestamptz) to goldleaves_kernel;
