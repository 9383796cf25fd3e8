-- What events count for: a row an event and version of a meter that counts it. Rollups, what is not rolled up yet, and plain readings all
-- come from here, so they cannot disagree. An event that no meter of its name counts is a row of version 0, named as the event.

-- A dimension by its name: a column of the event, or a member of its dimensions. Inlined, like the next two: they are asked for each event.
create or replace function metering.dimension(
  p_name text, p_dimensions jsonb, p_user_id text, p_workspace_id text, p_resource_id text, p_source text
)
returns text
language sql
immutable
parallel safe
as $$
  select case p_name
    when 'user_id' then p_user_id
    when 'workspace_id' then p_workspace_id
    when 'resource_id' then p_resource_id
    when 'source' then p_source
    else p_dimensions ->> p_name
  end
$$;

-- What a member of dimensions says as a number; null where it says none.
create or replace function metering.number_in(p_text text)
returns numeric
language sql
immutable
parallel safe
as $$ select case when p_text ~ '^-?[0-9]{1,30}(\.[0-9]{1,18})?$' then p_text::numeric end $$;

create or replace function metering.value_hash(p_value text)
returns uuid
language sql
immutable
parallel safe
as $$
  select pg_catalog.encode(pg_catalog.substring(pg_catalog.sha256(pg_catalog.convert_to(p_value, 'UTF8')), 1, 16), 'hex')::uuid
$$;

-- p_filter: {"dimension": ["value", …]}, of which all have to hold. A value may be named as groups keep it.
create or replace function metering.passes(
  p_filter jsonb, p_dimensions jsonb, p_user_id text, p_workspace_id text, p_resource_id text, p_source text
)
returns boolean
language sql
immutable
parallel safe
as $$
  select not exists (
    select
    from pg_catalog.jsonb_each(p_filter) as f (name, allowed)
    cross join lateral (
      values (metering.dimension(f.name, p_dimensions, p_user_id, p_workspace_id, p_resource_id, p_source))
    ) as d (value)
    where not coalesce(
      f.allowed @> pg_catalog.to_jsonb(d.value)
        or pg_catalog.octet_length(d.value) > 200 and f.allowed @> pg_catalog.to_jsonb(metering.kept_value(d.value)),
      false
    )
  )
$$;

-- Whether a void is where the event is that it takes back. One of an adjustment is, in the open period; one of an event of a finalized
-- period is not.
create or replace function metering.is_beside_its_event(p_organization_id uuid, p_occurred_at timestamptz, p_corrects uuid)
returns boolean
language sql
stable
set search_path = ''
as $$
  select exists (
    select
    from metering.usage_events o
    where o.organization_id = p_organization_id
      and o.occurred_at = p_occurred_at
      and o.id = p_corrects
  )
$$;

-- Versions of meters with the ones that follow them.
create or replace view metering.meter_lifetimes with (security_invoker) as
select
  w.meter_code, w.version, w.event_name, w.value, w.filter, w.group_by, w.max_groups, w.counts, w.effective_from, w.created_at,
  m.aggregation,
  m.deleted_at,
  lead(w.effective_from) over (partition by w.meter_code order by w.version) as next_effective_from,
  lead(w.created_at) over (partition by w.meter_code order by w.version) as next_created_at
from metering.meter_versions w
join metering.meters m on m.code = w.meter_code;

-- Whether a version is the last one that was there when an event was recorded and is effective when it happened. Both only grow with the
-- versions, so the next one tells. What is recorded after the deletion of a meter does not count, whenever it happened. Inlined.
create or replace function metering.is_in_force(
  p_created_at timestamptz, p_effective_from timestamptz, p_next_created_at timestamptz, p_next_effective_from timestamptz,
  p_deleted_at timestamptz, p_recorded_at timestamptz, p_happened_at timestamptz
)
returns boolean
language sql
immutable
parallel safe
as $$
  select p_created_at <= p_recorded_at
    and p_effective_from <= p_happened_at
    and (p_next_created_at is null or p_next_created_at > p_recorded_at or p_next_effective_from > p_happened_at)
    and (p_deleted_at is null or p_deleted_at > p_recorded_at)
$$;

create or replace view metering.counted_events with (security_invoker) as
select
  e.organization_id,
  e.occurred_at,
  e.id,
  e.recorded_generation,
  e.recorded_xid,
  e.billing_entity_id,
  e.event_type,
  e.corrects,
  l.belongs_at,
  -- For filters beyond what the meter keeps.
  e.dimensions,
  e.user_id,
  e.workspace_id,
  e.resource_id,
  e.source,
  coalesce(e.meter_code, e.event_name) as meter_code,
  coalesce(e.version, 0) as meter_version,
  coalesce(e.aggregation, 'sum') as aggregation,
  coalesce(e.max_groups, 1) as max_groups,
  case when e.event_type = 'void' then -1 else 1 end as events,
  -- What is added up. The row of a void has its quantities negated already, and the dimensions of what it voids.
  case
    when e.reads is null or e.reads = 'quantity' then e.quantity
    when e.reads = 'weighted_units' then e.weighted_units
    when e.reads like 'dimensions.%' and e.aggregation <> 'unique'
      then metering.number_in(e.dimensions ->> substr(e.reads, 12)) * case when e.event_type = 'void' then -1 else 1 end
  end as value,
  -- What a unique meter tells apart. A void of a finalized period takes no value away from the open one.
  case when e.aggregation = 'unique' and (e.event_type <> 'void' or l.belongs_at is null) then
    metering.value_hash(
      case e.reads
        when 'quantity' then trim_scale(abs(e.quantity))::text
        when 'weighted_units' then trim_scale(abs(e.weighted_units))::text
        else metering.dimension(
          case when e.reads like 'dimensions.%' then substr(e.reads, 12) else e.reads end,
          e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source
        )
      end
    )
  end as value_hash,
  -- The group, see metering.groups_of(): its dimensions, and the values that the event has of them.
  coalesce(e.group_by, '{}') as group_by,
  -- The usual ones said out loud: the last form costs twice as much an event.
  case coalesce(cardinality(e.group_by), 0)
    when 0 then '{}'
    when 1 then array[
      metering.dimension(e.group_by[1], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source)
    ]
    when 2 then array[
      metering.dimension(e.group_by[1], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[2], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source)
    ]
    when 3 then array[
      metering.dimension(e.group_by[1], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[2], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[3], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source)
    ]
    else (array[
      metering.dimension(e.group_by[1], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[2], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[3], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[4], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[5], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[6], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[7], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
      metering.dimension(e.group_by[8], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source)
    ])[1:cardinality(e.group_by)]
  end as group_values,
  -- As it is recorded, of voids too: late usage and what is taken back of it are rated apart.
  e.belongs_at as late_at,
  -- For metering.digested_events.
  e.event_name,
  e.quantity,
  e.weighted_units,
  e.payer_user_id,
  e.metered_at,
  e.recorded_at
from (
  -- By its own name …
  select e.*, v.meter_code, v.version, v.aggregation, v.max_groups, v.value as reads, v.group_by
  from metering.usage_events e
  left join metering.meter_lifetimes v
    on v.event_name = e.event_name
    and v.counts
    and metering.is_in_force(
      v.created_at, v.effective_from, v.next_created_at, v.next_effective_from, v.deleted_at,
      coalesce(e.metered_at, e.recorded_at), coalesce(e.belongs_at, e.occurred_at)
    )
    and case
      when v.filter = '{}' then true
      else metering.passes(v.filter, e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source)
    end
  union all
  -- … and by what it weighs, whatever its name. Apart, since no hash join takes an `or`.
  select e.*, v.meter_code, v.version, v.aggregation, v.max_groups, v.value, v.group_by
  from metering.usage_events e
  join metering.meter_lifetimes v
    on v.event_name is null
    and v.counts
    and metering.is_in_force(
      v.created_at, v.effective_from, v.next_created_at, v.next_effective_from, v.deleted_at,
      coalesce(e.metered_at, e.recorded_at), coalesce(e.belongs_at, e.occurred_at)
    )
    and case
      when v.filter = '{}' then true
      else metering.passes(v.filter, e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source)
    end
  where e.weighted_units is not null
) as e
-- Of a void: null, unless what it takes back is in a finalized period.
cross join lateral (
  select
    case
      when e.event_type <> 'void' or e.belongs_at is null then e.belongs_at
      when not metering.is_beside_its_event(e.organization_id, e.occurred_at, e.corrects) then e.belongs_at
    end as belongs_at
) as l;

-- With a hash of all that decides what an event costs: sums of it tell whether events were changed. The hash that Postgres partitions tables
-- by, which is the same in all versions and quick enough for each event. Somebody who may write everything can find another event of the
-- same hash, so invoices rest on what is derived anew from the events, and on this beside it. Apart, since readers need not pay for it.
create or replace view metering.digested_events with (security_invoker) as
select
  c.*,
  hash_record_extended(
    row(
      c.id, c.occurred_at, c.event_type, c.event_name, c.quantity, c.weighted_units, c.user_id, c.workspace_id, c.resource_id, c.source,
      c.payer_user_id, c.late_at, c.corrects, c.metered_at, c.recorded_at, c.dimensions
    ),
    0
  ) as digest
from metering.counted_events c;

grant select on metering.counted_events, metering.digested_events, metering.meter_lifetimes to goldleaves_kernel;
grant execute on function metering.is_beside_its_event(uuid, timestamptz, uuid),
  metering.dimension(text, jsonb, text, text, text, text), metering.number_in(text), metering.value_hash(text),
  metering.passes(jsonb, jsonb, text, text, text, text),
  metering.is_in_force(timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz) to goldleaves_kernel;

-- {"dimension": value} as rollups keep it. Once for what is added up rather than for each event: it costs as much as all else that is done with one.
create or replace function metering.groups_of(p_group_by text[], p_group_values text[])
returns jsonb
language sql
stable
parallel safe
as $$
  select case when p_group_by = '{}' then '{}'::jsonb else metering.kept_groups(pg_catalog.jsonb_object(p_group_by, p_group_values)) end
$$;

-- Of one organization, what was recorded from a position on and happened in a time; p_meters null: of all meters. Finds it by the position alone, and
-- by nothing of the organization or the time that another index has: the planner cannot know how little it is, and would read a whole month for it.
create or replace function metering.counted_since(
  p_generation integer, p_xid xid8, p_organization_id uuid, p_from timestamptz, p_until timestamptz, p_meters text[] default null
)
returns setof metering.counted_events
language plpgsql
stable
set search_path = ''
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query
    select *
    from metering.counted_events e
    where (e.recorded_generation, e.recorded_xid) >= (p_generation, p_xid)
      and uuid_hash(e.organization_id) = uuid_hash(p_organization_id)
      and (e.organization_id = p_organization_id) is true
      and (e.occurred_at >= p_from and e.occurred_at < p_until) is true
      and (p_meters is null or e.meter_code = any (p_meters));
end;
$$;

-- Of one organization, what happened in a time and was recorded before a position (none: all).
create or replace function metering.counted_by_time(
  p_organization_id uuid, p_from timestamptz, p_until timestamptz, p_before_generation integer default null, p_before_xid xid8 default null,
  p_meters text[] default null
)
returns setof metering.counted_events
language plpgsql
stable
set search_path = ''
as $$
begin
  return query
    select *
    from metering.counted_events e
    where e.organization_id = p_organization_id
      and e.occurred_at >= p_from
      and e.occurred_at < p_until
      and (
        p_before_generation is null
        or (e.recorded_generation, e.recorded_xid) < (p_before_generation, p_before_xid)
      )
      and (p_meters is null or e.meter_code = any (p_meters));
end;
$$;

grant execute on function metering.groups_of(text[], text[]), metering.counted_since(integer, xid8, uuid, timestamptz, timestamptz, text[]),
  metering.counted_by_time(uuid, timestamptz, timestamptz, integer, xid8, text[]) to goldleaves_kernel;
