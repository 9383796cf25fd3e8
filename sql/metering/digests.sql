-- What the events of a time come to with the sum of their digests, a row a meter, version and payer: what was rolled up, and what is not yet, in
-- one snapshot. Rollups of before digests have none; then all events are read. The bounds are those of a billing period.
create or replace function metering.digests(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns table (meter_code text, meter_version integer, billing_entity_id uuid, events bigint, value numeric, digest numeric)
language plpgsql
stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_position metering.rollup_position;
begin
  if exists (
    select
    from metering.usage_rollups r
    where r.organization_id = p_organization_id
      and r.grain = 'period'
      and r.bucket_start = p_period_start
      and r.digest is null
  ) then
    return query
      select e.meter_code, e.meter_version, e.billing_entity_id, sum(e.events)::bigint, coalesce(sum(e.value), 0), sum(e.digest)
      from metering.digested_events e
      where e.organization_id = p_organization_id
        and e.occurred_at >= p_period_start
        and e.occurred_at < p_period_end
      group by 1, 2, 3;
    return;
  end if;

  select * into strict v_position from metering.rollup_position;
  return query
    select c.meter_code, c.meter_version, c.billing_entity_id, sum(c.events)::bigint, sum(c.value), sum(c.digest)
    from (
      select r.meter_code, r.meter_version, r.billing_entity_id, r.events, r.value, r.digest
      from metering.usage_rollups r
      where r.organization_id = p_organization_id
        and r.grain = 'period'
        and r.bucket_start = p_period_start
      union all
      select t.meter_code, t.meter_version, t.billing_entity_id, t.events, t.value, t.digest
      from metering.digested_since(v_position.generation, v_position.xid, p_organization_id, p_period_start, p_period_end) t
    ) as c
    group by 1, 2, 3;
end;
$$;

-- See metering.counted_since().
create or replace function metering.digested_since(
  p_generation integer, p_xid xid8, p_organization_id uuid, p_from timestamptz, p_until timestamptz
)
returns table (meter_code text, meter_version integer, billing_entity_id uuid, events bigint, value numeric, digest numeric)
language plpgsql
stable
set search_path = ''
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query
    select e.meter_code, e.meter_version, e.billing_entity_id, sum(e.events)::bigint, coalesce(sum(e.value), 0), sum(e.digest)
    from metering.digested_events e
    where (e.recorded_generation, e.recorded_xid) >= (p_generation, p_xid)
      and uuid_hash(e.organization_id) = uuid_hash(p_organization_id)
      and (e.organization_id = p_organization_id) is true
      and (e.occurred_at >= p_from and e.occurred_at < p_until) is true
    group by 1, 2, 3;
end;
$$;

grant execute on function metering.digests(uuid, timestamptz, timestamptz),
  metering.digested_since(integer, xid8, uuid, timestamptz, timestamptz) to goldleaves_kernel;
