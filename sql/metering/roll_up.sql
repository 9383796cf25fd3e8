-- Rollups: what events come to, an hour and a billing period, added up once and for all. A run takes what was recorded below the oldest
-- transaction that still runs, and at or above where the last run ended; nothing can be recorded there any more. Readers add what lies above
-- (metering.measure), so totals are exact at every moment, however far behind this is.

-- Alone against rollups: who changes what meters are holds it to the end, so nothing is rolled up by a meter that is not there yet.
create or replace function metering.lock_rollups()
returns void
language sql
volatile
set search_path = ''
as $$ select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('goldleaves.rollup', 0)) $$;

-- A quarter of an hour is what every timezone's hours can be put together from.
create or replace function metering.quarter_of(p_at timestamptz)
returns timestamptz
language sql
immutable
parallel safe
as $$ select pg_catalog.date_bin('15 minutes', p_at, '2000-01-01 00:00+00') $$;

-- The bucket of a moment in a period: the hour of UTC where hours of the period's timezone begin with those, else the quarter. None lies
-- across the beginning of a period.
create or replace function metering.bucket_in(p_at timestamptz, p_period_start timestamptz, p_timezone text)
returns timestamptz
language sql
stable
parallel safe
as $$
  select greatest(
    p_period_start,
    case
      when extract(minute from p_at at time zone p_timezone) = extract(minute from p_at at time zone 'UTC')
        then pg_catalog.date_trunc('hour', p_at, 'UTC')
      else metering.quarter_of(p_at)
    end
  )
$$;

-- Time, id and value of an event in one text that sorts like the first two, so that max() finds the latest value.
create or replace function metering.latest_of(p_at timestamptz, p_id uuid, p_value numeric)
returns text
language sql
immutable
parallel safe
as $$
  select (pg_catalog.lpad((extract(epoch from p_at) * 1000000)::bigint::text, 20, '0') || p_id::text || p_value::text) collate "C"
$$;

create or replace function metering.at_of(p_latest text)
returns timestamptz
language sql
immutable
parallel safe
as $$ select timestamptz 'epoch' + pg_catalog.substr(p_latest, 1, 20)::bigint * interval '1 microsecond' $$;

-- What a group beyond the bound of a meter is called: the same dimensions, all of them "other".
create or replace function metering.other_group(p_groups jsonb)
returns jsonb
language sql
immutable
parallel safe
as $$ select pg_catalog.jsonb_object_agg(k.name, 'other') from pg_catalog.jsonb_object_keys(p_groups) as k (name) $$;

-- What a run says: see metering.roll_up().
create or replace function metering.rollup_report(p_events bigint, p_behind boolean, p_folded bigint, p_generation integer, p_xid xid8)
returns jsonb
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_oldest timestamptz;
  v_lag numeric;
begin
  -- The first event that was not taken.
  select e.recorded_at into v_oldest
  from metering.usage_events e
  where (e.recorded_generation, e.recorded_xid) >= (p_generation, p_xid)
  order by e.recorded_generation, e.recorded_xid
  limit 1;
  v_lag := greatest(round(extract(epoch from clock_timestamp() - coalesce(v_oldest, clock_timestamp())), 3), 0);
  return jsonb_build_object(
    'events', p_events,
    'behind', p_behind,
    'lag_seconds', v_lag,
    'held_back_by', case when v_lag > 60 and not p_behind then metering.oldest_transaction() end,
    'folded', p_folded
  );
end;
$$;

-- Which session, or prepared transaction, holds the oldest transaction id; whoever reads this cannot see more of others' sessions.
create or replace function metering.oldest_transaction()
returns text
language sql
volatile
set search_path = ''
as $$
  select coalesce('session ' || l.pid, 'a prepared transaction, see pg_prepared_xacts')
  from pg_catalog.pg_locks l
  where l.locktype = 'transactionid'
    and l.mode = 'ExclusiveLock'
    and l.granted
    and l.transactionid::text::bigint = pg_snapshot_xmin(pg_current_snapshot())::text::numeric % 4294967296
  limit 1
$$;

-- p_most: about how many events a run takes at once. Returns {"events", "behind": whether there is more to take now, "lag_seconds": age of
-- the oldest event that is not rolled up, "held_back_by": who holds the oldest transaction when that is over a minute, else null, "folded":
-- groups that became "other" in this run, "folded_of": the ten organizations and meters with the most of them, or null}; {"busy": true} when
-- another session is at it.
-- Planned for a short tail, as it nearly always is: by the index of positions, and never a whole month.
create or replace function metering.roll_up(p_most integer default 200000)
returns jsonb
language plpgsql
volatile
security definer
set search_path = ''
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_generation integer;
  v_from metering.rollup_position;
  v_end_generation integer;
  v_end_xid xid8;
  v_next record;
  v_behind boolean := false;
  v_events bigint;
  v_folded bigint;
  v_folded_of jsonb;
  v_redone jsonb;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'PT500',
      message = 'ISOLATION_LEVEL: this needs READ COMMITTED, else what the run before took would be taken again';
  end if;
  if not pg_try_advisory_xact_lock(hashtextextended('goldleaves.rollup', 0)) then
    return '{"busy": true}';
  end if;

  v_generation := metering.recording_generation();
  select * into strict v_from from metering.rollup_position;
  v_end_generation := v_generation;
  v_end_xid := pg_snapshot_xmin(pg_current_snapshot());
  if (v_from.generation, v_from.xid) > (v_end_generation, pg_snapshot_xmax(pg_current_snapshot())) then
    raise exception using
      errcode = 'PT503',
      message = 'DATABASE_RESTORED: rollups are ahead of this database, which came from another cluster',
      hint = 'Run `goldleaves migrate` on it.';
  end if;

  -- No more than p_most, but always all of one transaction.
  select e.recorded_generation as generation, e.recorded_xid as xid into v_next
  from metering.usage_events e
  where (e.recorded_generation, e.recorded_xid) >= (v_from.generation, v_from.xid)
    and (e.recorded_generation, e.recorded_xid) < (v_end_generation, v_end_xid)
  order by e.recorded_generation, e.recorded_xid
  offset greatest(p_most, 1)
  limit 1;
  if found then
    v_behind := true;
    v_end_generation := v_next.generation;
    v_end_xid := v_next.xid;
    if not exists (
      select
      from metering.usage_events e
      where (e.recorded_generation, e.recorded_xid) >= (v_from.generation, v_from.xid)
        and (e.recorded_generation, e.recorded_xid) < (v_end_generation, v_end_xid)
    ) then
      v_end_xid := (v_end_xid::text::numeric + 1)::text::xid8;
    end if;
  end if;

  with quarters as materialized (
    select
      c.organization_id, c.meter_code, c.meter_version, c.aggregation, c.max_groups, c.billing_entity_id, c.group_by, c.group_values,
      metering.quarter_of(c.occurred_at) as quarter,
      c.value_hash,
      count(*) as rows,
      sum(c.digest) as digest,
      sum(c.events) as events,
      coalesce(sum(c.value), 0) as value,
      sum(c.value * extract(epoch from c.occurred_at - metering.quarter_of(c.occurred_at))) filter (where c.aggregation = 'weighted_sum') as moment,
      max(c.value) filter (where c.aggregation = 'max' and c.event_type <> 'void') as max_value,
      min(c.value) filter (where c.aggregation = 'min' and c.event_type <> 'void') as min_value,
      -- Late usage of a finalized period is never the latest.
      max(metering.latest_of(c.occurred_at, c.id, c.value)) filter (where c.aggregation = 'latest' and c.event_type = 'usage') as latest,
      bool_or(c.event_type = 'void' and c.belongs_at is null and c.aggregation in ('max', 'min', 'latest')) as is_redone
    from metering.digested_events c
    where (c.recorded_generation, c.recorded_xid) >= (v_from.generation, v_from.xid)
      and (c.recorded_generation, c.recorded_xid) < (v_end_generation, v_end_xid)
    group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
  ),
  places as materialized (
    -- Recording an event makes its period. One that came past the triggers, as in a restore, may have none: it is rolled up all the same.
    select
      q.organization_id,
      q.quarter,
      coalesce(p.period_start, date_trunc('month', q.quarter, 'UTC')) as period_start,
      coalesce(p.period_end, date_trunc('month', q.quarter, 'UTC') + interval '1 month') as period_end,
      metering.bucket_in(q.quarter, coalesce(p.period_start, '-infinity'), coalesce(p.timezone, 'UTC')) as bucket_start,
      coalesce(p.timezone, 'UTC') as timezone,
      p.invoice_mode
    from (select distinct organization_id, quarter from quarters) as q
    left join billing.billing_periods p
      on p.organization_id = q.organization_id and p.period_start <= q.quarter and p.period_end > q.quarter
  ),
  placed as materialized (
    select q.*, metering.groups_of(q.group_by, q.group_values) as groups, p.period_start, p.period_end, p.bucket_start, p.timezone
    from quarters q
    join places p on p.organization_id = q.organization_id and p.quarter = q.quarter
  ),
  -- Groups that are new to a period and version come in while there is room for them. Who was "other" once stays that: the void of an event
  -- has to find it where it was counted. So a version has its own bound, which never changes, and nothing takes a place that it does not keep.
  newcomers as materialized (
    select
      g.organization_id, g.meter_code, g.meter_version, g.period_start, g.groups, g.max_groups,
      row_number() over (partition by g.organization_id, g.meter_code, g.meter_version, g.period_start order by g.groups) as place
    from (
      select distinct organization_id, meter_code, meter_version, period_start, groups, max_groups
      from placed
      where groups <> '{}'
        and groups <> metering.other_group(groups)
    ) as g
    where not exists (
      select
      from metering.usage_rollups r
      where r.organization_id = g.organization_id
        and r.grain = 'period'
        and r.meter_code = g.meter_code
        and r.bucket_start = g.period_start
        and r.meter_version = g.meter_version
        and r.groups = g.groups
    )
  ),
  -- Counted once, however many newcomers there are: each of them may be an event's own.
  residents as materialized (
    select r.organization_id, r.meter_code, r.meter_version, r.bucket_start as period_start, count(distinct r.groups) as groups
    from (select distinct organization_id, meter_code, meter_version, period_start from newcomers) as n
    join metering.usage_rollups r
      on r.organization_id = n.organization_id
      and r.grain = 'period'
      and r.meter_code = n.meter_code
      and r.bucket_start = n.period_start
      and r.meter_version = n.meter_version
    where r.groups <> metering.other_group(r.groups)
    group by 1, 2, 3, 4
  ),
  folded as materialized (
    select n.organization_id, n.meter_code, n.meter_version, n.period_start, n.groups
    from newcomers n
    left join residents r
      on r.organization_id = n.organization_id
      and r.meter_code = n.meter_code
      and r.meter_version = n.meter_version
      and r.period_start = n.period_start
    where n.place + coalesce(r.groups, 0) > n.max_groups
  ),
  settled as materialized (
    select
      p.*,
      -- Asked for each, which is hashed, and not joined: the planner expects hardly any.
      case
        when (p.organization_id, p.meter_code, p.meter_version, p.period_start, p.groups) in (
          select f.organization_id, f.meter_code, f.meter_version, f.period_start, f.groups
          from folded f
        ) then metering.other_group(p.groups)
        else p.groups
      end as kept_groups,
      g.grain,
      case g.grain when 'hour' then p.bucket_start else p.period_start end as start
    from placed p
    cross join (values ('hour'), ('period')) as g (grain)
  ),
  rolled as (
    insert into metering.usage_rollups as r (
      organization_id, grain, meter_code, bucket_start, meter_version, billing_entity_id, groups, events, value, moment,
      max_value, min_value, latest_value, latest_at, latest_id, digest
    )
    select
      s.organization_id, s.grain, s.meter_code, s.start, s.meter_version, s.billing_entity_id, s.kept_groups, s.events, s.value, s.moment,
      s.max_value, s.min_value, substr(s.latest, 57)::numeric,
      metering.at_of(s.latest), substr(s.latest, 21, 36)::uuid, s.digest
    from (
      select
        organization_id, grain, meter_code, start, meter_version, billing_entity_id, kept_groups,
        sum(digest) as digest,
        sum(events) as events,
        sum(value) as value,
        sum(moment + value * extract(epoch from quarter - start)) as moment,
        max(max_value) as max_value,
        min(min_value) as min_value,
        max(latest) as latest
      from settled
      group by 1, 2, 3, 4, 5, 6, 7
    ) as s
    on conflict (organization_id, grain, meter_code, bucket_start, meter_version, billing_entity_id, groups) do update set
      events = r.events + excluded.events,
      digest = r.digest + excluded.digest,
      value = r.value + excluded.value,
      moment = coalesce(r.moment + excluded.moment, r.moment, excluded.moment),
      max_value = greatest(r.max_value, excluded.max_value),
      min_value = least(r.min_value, excluded.min_value),
      latest_value = case when (excluded.latest_at, excluded.latest_id) > (r.latest_at, r.latest_id) or r.latest_at is null
        then excluded.latest_value else r.latest_value end,
      latest_id = case when (excluded.latest_at, excluded.latest_id) > (r.latest_at, r.latest_id) or r.latest_at is null
        then excluded.latest_id else r.latest_id end,
      latest_at = case when (excluded.latest_at, excluded.latest_id) > (r.latest_at, r.latest_id) or r.latest_at is null
        then excluded.latest_at else r.latest_at end
  ),
  seen as (
    insert into metering.unique_values as u (
      organization_id, grain, meter_code, bucket_start, meter_version, billing_entity_id, groups, value_hash, events
    )
    select organization_id, grain, meter_code, start, meter_version, billing_entity_id, kept_groups, value_hash, sum(events)
    from settled
    where value_hash is not null
    group by 1, 2, 3, 4, 5, 6, 7, 8
    on conflict (organization_id, grain, meter_code, bucket_start, meter_version, billing_entity_id, groups, value_hash) do update set
      events = u.events + excluded.events
  ),
  -- Whose alerts are to be looked at. Only added to: nobody is waited for.
  queued as (
    insert into billing.alert_queue (organization_id, period_start)
    select distinct p.organization_id, p.period_start from places p
  ),
  -- What Stripe is to be told of, likewise.
  reported as (
    insert into stripe.report_queue (organization_id, meter_code, bucket_start, generation, xid)
    select distinct q.organization_id, q.meter_code, p.bucket_start, v_from.generation, v_from.xid
    from places p
    join stripe.customers c on c.organization_id = p.organization_id and c.deleted_at is null
    join quarters q on q.organization_id = p.organization_id and q.quarter = p.quarter
    join stripe.meters m on m.meter_code = q.meter_code
    where p.invoice_mode = 'stripe_meters'
      and q.meter_version > 0
  )
  select
    coalesce((select sum(q.rows) from quarters q), 0),
    (select count(*) from folded),
    (
      select jsonb_agg(to_jsonb(w))
      from (
        select f.organization_id, f.meter_code as meter, count(*) as groups
        from folded f
        group by 1, 2
        order by 3 desc, 1, 2
        limit 10
      ) as w
    ),
    (
      select jsonb_agg(distinct jsonb_build_object(
        'organization_id', s.organization_id, 'meter_code', s.meter_code, 'meter_version', s.meter_version, 'billing_entity_id', s.billing_entity_id,
        'groups', s.kept_groups, 'bucket_start', s.bucket_start, 'timezone', s.timezone, 'period_start', s.period_start, 'period_end', s.period_end
      ))
      from settled s
      where s.is_redone
    )
  into v_events, v_folded, v_folded_of, v_redone;

  if v_redone is not null then
    perform metering.redo_extremes(v_redone, v_end_generation, v_end_xid);
  end if;

  -- An idle database stays as it is: where nothing lies between two positions, they are the same.
  if v_events > 0 then
    update metering.rollup_position set generation = v_end_generation, xid = v_end_xid, moved_at = clock_timestamp();
  end if;
  return metering.rollup_report(v_events, v_behind, v_folded, v_end_generation, v_end_xid) || jsonb_build_object('folded_of', v_folded_of);
end;
$$;

-- A greatest, least or latest value may have been voided: then its bucket is read again, without what was voided, and the period is put
-- together from its buckets. p_buckets: which; the position: what was recorded before it counts.
create or replace function metering.redo_extremes(p_buckets jsonb, p_generation integer, p_xid xid8)
returns void
language sql
volatile
set search_path = ''
as $$
  with asked as materialized (
    select *
    from jsonb_to_recordset(p_buckets) as b (
      organization_id uuid, meter_code text, meter_version integer, billing_entity_id uuid, groups jsonb, bucket_start timestamptz,
      timezone text, period_start timestamptz, period_end timestamptz
    )
  ),
  -- By the organization and bucket, however many groups there are to redo.
  left_over as materialized (
    select b.organization_id, b.bucket_start, b.period_start, e.meter_code, e.meter_version, e.billing_entity_id,
      metering.groups_of(e.group_by, e.group_values) as groups, e.value, e.occurred_at, e.id, e.event_type
    from (select distinct organization_id, bucket_start, timezone, period_start, period_end from asked) as b
    cross join lateral metering.counted_by_time(b.organization_id, b.bucket_start, b.bucket_start + interval '1 hour', p_generation, p_xid) e
    where metering.bucket_in(metering.quarter_of(e.occurred_at), b.period_start, b.timezone) = b.bucket_start
      and e.occurred_at < b.period_end
      and e.aggregation in ('max', 'min', 'latest')
      and e.event_type <> 'void'
      and e.value is not null
      and not exists (
        select
        from metering.usage_events v
        where v.organization_id = e.organization_id
          and v.occurred_at = e.occurred_at
          and v.corrects = e.id
          and v.event_type = 'void'
          and (v.recorded_generation, v.recorded_xid) < (p_generation, p_xid)
      )
  )
  update metering.usage_rollups r
  set (max_value, min_value, latest_value, latest_at, latest_id) = (
    select
      case m.aggregation when 'max' then max(l.value) end,
      case m.aggregation when 'min' then min(l.value) end,
      case m.aggregation when 'latest' then (array_agg(l.value order by l.occurred_at desc, l.id desc) filter (where l.event_type = 'usage'))[1] end,
      case m.aggregation when 'latest' then max(l.occurred_at) filter (where l.event_type = 'usage') end,
      case m.aggregation when 'latest' then (array_agg(l.id order by l.occurred_at desc, l.id desc) filter (where l.event_type = 'usage'))[1] end
    from left_over l
    where l.organization_id = b.organization_id
      and l.bucket_start = b.bucket_start
      and l.meter_code = b.meter_code
      and l.meter_version = b.meter_version
      and l.billing_entity_id = b.billing_entity_id
      and (
        l.groups = b.groups
        -- What is in "other" is what has no group of its own.
        or b.groups = metering.other_group(b.groups) and not exists (
          select
          from metering.usage_rollups o
          where o.organization_id = l.organization_id
            and o.grain = 'period'
            and o.meter_code = l.meter_code
            and o.bucket_start = l.period_start
            and o.meter_version = l.meter_version
            and o.groups = l.groups
        )
      )
  )
  from asked b
  join metering.meters m on m.code = b.meter_code
  where r.organization_id = b.organization_id
    and r.grain = 'hour'
    and r.meter_code = b.meter_code
    and r.bucket_start = b.bucket_start
    and r.meter_version = b.meter_version
    and r.billing_entity_id = b.billing_entity_id
    and r.groups = b.groups;

  update metering.usage_rollups r
  set (max_value, min_value, latest_value, latest_at, latest_id) = (
    select
      max(h.max_value),
      min(h.min_value),
      (array_agg(h.latest_value order by h.latest_at desc, h.latest_id desc) filter (where h.latest_at is not null))[1],
      max(h.latest_at),
      (array_agg(h.latest_id order by h.latest_at desc, h.latest_id desc) filter (where h.latest_at is not null))[1]
    from metering.usage_rollups h
    where h.organization_id = b.organization_id
      and h.grain = 'hour'
      and h.meter_code = b.meter_code
      and h.bucket_start >= b.period_start
      and h.bucket_start < b.period_end
      and h.meter_version = b.meter_version
      and h.billing_entity_id = b.billing_entity_id
      and h.groups = b.groups
  )
  from (
    select distinct organization_id, meter_code, meter_version, billing_entity_id, groups, period_start, period_end
    from jsonb_to_recordset(p_buckets) as b (
      organization_id uuid, meter_code text, meter_version integer, billing_entity_id uuid, groups jsonb, period_start timestamptz, period_end timestamptz
    )
  ) as b
  where r.organization_id = b.organization_id
    and r.grain = 'period'
    and r.meter_code = b.meter_code
    and r.bucket_start = b.period_start
    and r.meter_version = b.meter_version
    and r.billing_entity_id = b.billing_entity_id
    and r.groups = b.groups
$$;

alter function metering.roll_up(integer) owner to goldleaves_kernel;
grant execute on function metering.lock_rollups(), metering.quarter_of(timestamptz), metering.bucket_in(timestamptz, timestamptz, text), metering.latest_of(timestamptz, uuid, numeric), metering.at_of(text), metering.other_group(jsonb),
  metering.rollup_report(bigint, boolean, bigint, integer, xid8), metering.oldest_transaction(), metering.redo_extremes(jsonb, integer, xid8)
  to goldleaves_kernel;
grant execute on function metering.roll_up(integer) to sidecar;
