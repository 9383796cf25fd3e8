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

-- p_filter: {"dimension": ["value", …]}, of which all have to hold.
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
    where not coalesce(
      f.allowed @> pg_catalog.to_jsonb(metering.dimension(f.name, p_dimensions, p_user_id, p_workspace_id, p_resource_id, p_source)), false
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
  coalesce(v.meter_code, e.event_name) as meter_code,
  coalesce(v.version, 0) as meter_version,
  coalesce(v.aggregation, 'sum') as aggregation,
  coalesce(v.max_groups, 1) as max_groups,
  case when e.event_type = 'void' then -1 else 1 end as events,
  -- What is added up. The row of a void has its quantities negated already, and the dimensions of what it voids.
  case
    when v.value is null or v.value = 'quantity' then e.quantity
    when v.value = 'weighted_units' then e.weighted_units
    when v.value like 'dimensions.%' and v.aggregation <> 'unique'
      then metering.number_in(e.dimensions ->> substr(v.value, 12)) * case when e.event_type = 'void' then -1 else 1 end
  end as value,
  -- What a unique meter tells apart. A void of a finalized period takes no value away from the open one.
  case when v.aggregation = 'unique' and (e.event_type <> 'void' or l.belongs_at is null) then
    metering.value_hash(
      case v.value
        when 'quantity' then trim_scale(abs(e.quantity))::text
        when 'weighted_units' then trim_scale(abs(e.weighted_units))::text
        else metering.dimension(
          case when v.value like 'dimensions.%' then substr(v.value, 12) else v.value end,
          e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source
        )
      end
    )
  end as value_hash,
  case
    when coalesce(v.group_by, '{}') = '{}' then '{}'::jsonb
    else jsonb_object(
      v.group_by,
      (array[
        metering.dimension(v.group_by[1], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
        metering.dimension(v.group_by[2], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
        metering.dimension(v.group_by[3], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
        metering.dimension(v.group_by[4], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
        metering.dimension(v.group_by[5], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
        metering.dimension(v.group_by[6], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
        metering.dimension(v.group_by[7], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source),
        metering.dimension(v.group_by[8], e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source)
      ])[1:cardinality(v.group_by)]
    )
  end as groups
from metering.usage_events e
-- Of a void: null, unless what it takes back is in a finalized period.
cross join lateral (
  select
    case
      when e.event_type <> 'void' or e.belongs_at is null then e.belongs_at
      when not metering.is_beside_its_event(e.organization_id, e.occurred_at, e.corrects) then e.belongs_at
    end as belongs_at
) as l
-- By its own name, and by what it weighs. Two keys a row instead of an `or`, which no hash join takes.
cross join lateral (
  values (e.event_name, true), (case when e.weighted_units is not null then '*' end, false)
) as k (name, is_own)
left join (
  select
    w.*,
    m.aggregation,
    m.deleted_at,
    coalesce(w.event_name, '*') as name,
    lead(w.effective_from) over (partition by w.meter_code order by w.version) as next_effective_from,
    lead(w.created_at) over (partition by w.meter_code order by w.version) as next_created_at
  from metering.meter_versions w
  join metering.meters m on m.code = w.meter_code
) as v
  on v.name = k.name
  and v.counts
  -- Whenever it happened: what is recorded after the deletion of a meter does not count.
  and (v.deleted_at is null or v.deleted_at > coalesce(e.metered_at, e.recorded_at))
  -- The last version that was there when the event was recorded and is effective when it happened. Both only grow with the versions,
  -- so the next one tells.
  and v.created_at <= coalesce(e.metered_at, e.recorded_at)
  and v.effective_from <= coalesce(e.belongs_at, e.occurred_at)
  and (
    v.next_created_at is null
    or v.next_created_at > coalesce(e.metered_at, e.recorded_at)
    or v.next_effective_from > coalesce(e.belongs_at, e.occurred_at)
  )
  and case
    when v.filter = '{}' then true
    else metering.passes(v.filter, e.dimensions, e.user_id, e.workspace_id, e.resource_id, e.source)
  end
where k.name is not null
  and (k.is_own or v.version is not null);

grant select on metering.counted_events to goldleaves_kernel;
grant execute on function metering.is_beside_its_event(uuid, timestamptz, uuid),
  metering.dimension(text, jsonb, text, text, text, text), metering.number_in(text), metering.value_hash(text),
  metering.passes(jsonb, jsonb, text, text, text, text) to goldleaves_kernel;

-- Of all organizations or of one, and of all meters or some, what was recorded from one position on and before another (none: no end). Never by time or
-- organization: the planner cannot know how little that is, and would read a whole month for it.
create or replace function metering.counted_by_position(
  p_from_generation integer, p_from_xid xid8, p_until_generation integer, p_until_xid xid8, p_organization_id uuid default null,
  p_from timestamptz default '-infinity', p_until timestamptz default 'infinity', p_meters text[] default null
)
returns setof metering.counted_events
language plpgsql
stable
set search_path = ''
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
begin
  return query
    select *
    from metering.counted_events e
    where (e.recorded_generation, e.recorded_xid) >= (p_from_generation, p_from_xid)
      and (e.recorded_generation, e.recorded_xid) < (coalesce(p_until_generation, 2147483647), coalesce(p_until_xid, '18446744073709551615'::xid8))
      and (p_organization_id is null or e.organization_id = p_organization_id)
      -- In no form that an index takes: a generic plan expects a short time, and reads the keys of the whole month for it.
      and coalesce(e.occurred_at, p_from) >= p_from
      and coalesce(e.occurred_at, p_until) < p_until
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

grant execute on function metering.counted_by_position(integer, xid8, integer, xid8, uuid, timestamptz, timestamptz, text[]),
  metering.counted_by_time(uuid, timestamptz, timestamptz, integer, xid8, text[]) to goldleaves_kernel;
