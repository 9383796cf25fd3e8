-- Storage: what an organization stores is the sum of its storage.bytes events. Tables record what comes and goes (meter_table.sql); their
-- rows and the events of their resource are brought together when a table begins to be metered, and when it is not any more.

-- What a meter of levels stood at at a moment, as recorded, in what its events carry: an event counts from its time on. It may be below zero when
-- somebody sent too much. What is stored is stored also when no meter counts it.
-- Whole periods and hours are rolled up; what is not yet, and what lies in the hour of the moment, comes from the events, in one snapshot.
create or replace function metering.recorded_level(p_organization_id uuid, p_meter_code text, p_at timestamptz)
returns numeric
language sql
stable
set search_path = ''
as $$
  with edge as (
    select
      h.start as hour_start,
      (select max(p.period_start) from billing.billing_periods p where p.organization_id = p_organization_id and p.period_start <= h.start) as period_start,
      r.generation,
      r.xid
    from metering.rollup_position r
    cross join (select date_trunc('hour', p_at, 'UTC') as start) as h
  )
  select coalesce(sum(s.value), 0)
  from (
    select r.value
    from edge e
    join metering.usage_rollups r
      on r.organization_id = p_organization_id
      and r.grain = 'period'
      and r.meter_code = p_meter_code
      and (r.meter_version > 0 or p_meter_code = 'storage.bytes')
      and r.bucket_start < e.period_start
    union all
    select r.value
    from edge e
    join metering.usage_rollups r
      on r.organization_id = p_organization_id
      and r.grain = 'hour'
      and r.meter_code = p_meter_code
      and (r.meter_version > 0 or p_meter_code = 'storage.bytes')
      and r.bucket_start >= e.period_start
      and r.bucket_start < e.hour_start
    union all
    select c.value
    from edge e
    cross join lateral metering.counted_since(e.generation, e.xid, p_organization_id, '-infinity', e.hour_start, array[p_meter_code]) c
    where c.meter_version > 0 or p_meter_code = 'storage.bytes'
    union all
    select c.value
    from edge e
    cross join lateral metering.counted_by_time(p_organization_id, e.hour_start, p_at, null, null, array[p_meter_code]) c
    where c.meter_version > 0 or p_meter_code = 'storage.bytes'
  ) as s
$$;

create or replace function metering.recorded_storage(p_organization_id uuid, p_at timestamptz)
returns numeric
language sql
stable
set search_path = ''
as $$ select metering.recorded_level(p_organization_id, 'storage.bytes', p_at) $$;

create or replace function metering.storage_level(p_organization_id uuid, p_at timestamptz)
returns numeric
language sql
stable
set search_path = ''
as $$ select greatest(metering.recorded_storage(p_organization_id, p_at), 0) $$;

grant execute on function metering.recorded_level(uuid, text, timestamptz), metering.recorded_storage(uuid, timestamptz),
  metering.storage_level(uuid, timestamptz) to goldleaves_kernel;

-- Brings rows and events together, once for each time that a table began to be metered: records the difference between what its rows stored
-- at that moment and what had been recorded of them. A resource that no trigger records any more, since a release or its table has gone, is
-- not stored any more, as far as anybody knows: all that was recorded of it goes.
create or replace function metering.settle_storage()
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_resource record;
  v_organizations uuid[];
  v_differences numeric[];
  v_common record;
begin
  for v_resource in
    select
      r.resource, r.began_at, r.counted_at, r.counted,
      not exists (
        select
        from pg_catalog.pg_trigger t
        where t.tgname = 'meter_update'
          and metering.meter_options(t.tgrelid) @> jsonb_build_object('resource', r.resource)
          and metering.meter_options(t.tgrelid) ? 'storage'
      ) as is_abandoned
    from metering.stored_resources r
    order by r.resource
    for update
  loop
    continue when v_resource.counted is null and not v_resource.is_abandoned;

    select array_agg(d.organization_id order by d.organization_id), array_agg(d.difference order by d.organization_id)
    into v_organizations, v_differences
    from (
      select s.organization_id, sum(s.bytes) as difference
      from (
        select c.key::uuid as organization_id, c.value::numeric as bytes
        from jsonb_each_text(v_resource.counted) c
        where not v_resource.is_abandoned
        union all
        select e.organization_id, -e.quantity
        from metering.usage_events e
        where (v_resource.is_abandoned or v_resource.began_at < v_resource.counted_at)
          and (v_resource.is_abandoned or e.recorded_at < v_resource.counted_at)
          -- Clocks are set back at times.
          and e.occurred_at >= v_resource.began_at - interval '1 hour'
          and e.event_name = 'storage.bytes'
          and e.source = 'trigger'
          and e.dimensions @> jsonb_build_object('resource', v_resource.resource)
      ) as s
      join tenancy.organizations o on o.id = s.organization_id
      group by 1
      having sum(s.bytes) <> 0
    ) as d;

    if v_organizations is not null then
      select * into v_common from metering.begin_table_events(v_organizations, '{}');
      insert into metering.usage_events (
        organization_id, occurred_at, source, event_name, quantity, weighted_units, unit, dimensions, payer_user_id, recorded_generation
      )
      select
        d.organization_id, v_common.occurred_at, 'trigger', 'storage.bytes', d.difference, d.difference * w.weight, 'byte',
        jsonb_build_object('resource', v_resource.resource), billing.payer(o.billing_user_id, o.billing_start_at, v_common.occurred_at),
        v_common.generation
      from unnest(v_organizations, v_differences) as d (organization_id, difference)
      join tenancy.organizations o on o.id = d.organization_id
      cross join lateral metering.weight_of(d.organization_id, 'storage.bytes', v_common.occurred_at) w;
    end if;

    if v_resource.is_abandoned then
      delete from metering.stored_resources where resource = v_resource.resource;
    else
      update metering.stored_resources set counted = null, counted_at = null where resource = v_resource.resource;
    end if;
  end loop;
end;
$$;

alter function metering.settle_storage() owner to goldleaves_kernel;
