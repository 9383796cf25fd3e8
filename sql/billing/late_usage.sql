-- Late usage that counts in a time for periods that were finalized before, and what was taken back of them: apart from the usage of the time
-- itself, since it is rated by the prices of the period it belongs to. Only meters that add up or count have it: a greatest, a latest
-- or a level over time of a finalized period is what it was. A row a meter, payer, period and group, of all dimensions that prices
-- of the meter ever told apart, and plan: since is when the phase of the subscription began that it belongs to, or its period. value: as the
-- meter reads it, not in its units.
create or replace function billing.late_usage(p_organization_id uuid, p_start timestamptz, p_end timestamptz)
returns table (
  meter_code text, billing_entity_id uuid, belongs_to timestamptz, since timestamptz, groups jsonb, events bigint, value numeric
)
language plpgsql
stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
as $$
begin
  -- The usual case: one look into an index.
  if not exists (
    select
    from metering.usage_events e
    where e.organization_id = p_organization_id
      and e.occurred_at >= p_start
      and e.occurred_at < p_end
      and e.belongs_at is not null
  ) then
    return;
  end if;

  return query
    with dimensions as materialized (
      select r.meter_code, array_agg(distinct r.dimension) as names
      from billing.prices r
      where r.dimension is not null
      group by 1
    ),
    late as materialized (
      select
        c.meter_code, c.billing_entity_id, c.late_at, c.events, c.aggregation, c.value,
        coalesce(
          (
            select jsonb_object_agg(n.name, v.value)
            from dimensions d
            cross join lateral unnest(d.names) as n (name)
            cross join lateral (
              select metering.kept_value(metering.dimension(n.name, c.dimensions, c.user_id, c.workspace_id, c.resource_id, c.source))
            ) as v (value)
            where d.meter_code = c.meter_code
              and v.value is not null
          ),
          '{}'
        ) as groups
      from metering.counted_events c
      where c.organization_id = p_organization_id
        and c.occurred_at >= p_start
        and c.occurred_at < p_end
        and c.late_at is not null
        and c.meter_version > 0
        and c.aggregation in ('sum', 'count')
    )
    select
      l.meter_code, l.billing_entity_id, p.period_start, greatest(p.period_start, f.starts_at), l.groups, sum(l.events)::bigint,
      trim_scale(coalesce(sum(case l.aggregation when 'count' then l.events else l.value end), 0))
    from late l
    join billing.billing_periods p
      on p.organization_id = p_organization_id and p.period_start <= l.late_at and p.period_end > l.late_at
    left join lateral billing.phase_at(p_organization_id, l.late_at) f on true
    group by l.meter_code, l.billing_entity_id, p.period_start, f.starts_at, l.groups;
end;
$$;

grant execute on function billing.late_usage(uuid, timestamptz, timestamptz) to goldleaves_kernel;
