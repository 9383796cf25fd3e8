-- What an event costs, where it can be said of one event: its meter adds up or counts, and each unit costs the same, whatever else was used.

-- The prices that count for an event, of each such meter: those in force when its period begins, as its invoice took or will take them; of
-- late usage the period it belongs to. units: how many units of the meter the event is.
create or replace function billing.prices_of_event(p_event metering.usage_events)
returns table (units numeric, unit_amount_cents numeric)
language sql
stable
security definer
set search_path = ''
as $$
  select
    case
      when m.aggregation = 'count' then case p_event.event_type when 'void' then -1 else 1 end
      when v.value = 'quantity' then p_event.quantity / m.unit_size
      when v.value = 'weighted_units' then p_event.weighted_units / m.unit_size
      else metering.number_in(p_event.dimensions ->> substr(v.value, 12)) * case p_event.event_type when 'void' then -1 else 1 end / m.unit_size
    end,
    p.unit_amount_cents
  from metering.meter_versions v
  join metering.meters m on m.code = v.meter_code
  join tenancy.organizations o on o.id = p_event.organization_id
  cross join billing.find_period(p_event.organization_id, coalesce(p_event.belongs_at, p_event.occurred_at)) as f
  left join lateral (
    select v.plan_code, v.currency, coalesce(v.rated_at, v.issued_at) as rated_at
    from billing.invoices v
    where v.organization_id = p_event.organization_id
      and v.period_start = f.period_start
      and f.status = 'finalized'
    limit 1
  ) as i on true
  left join lateral (
    select billing.priced_plan(h) as plan_code, h.status = 'trialing' as is_trial, true as is_there
    from billing.phase_at(p_event.organization_id, coalesce(p_event.belongs_at, p_event.occurred_at)) h
  ) as s on true
  cross join lateral (
    select case when s.is_trial then 0 else billing.unit_amount_of(billing.terms_of(r)) end as unit_amount_cents
    from billing.prices_in_force(
      case when s.is_there then s.plan_code else coalesce(i.plan_code, o.plan) end, coalesce(i.currency, o.currency), f.period_start,
      coalesce(i.rated_at, 'infinity')
    ) r
    where r.meter_code = m.code
      and (
        r.dimension is null
        or r.dimension_value = metering.kept_value(metering.dimension(
          r.dimension, p_event.dimensions, p_event.user_id, p_event.workspace_id, p_event.resource_id, p_event.source
        ))
      )
    order by r.dimension is null
    limit 1
  ) as p
  where p.unit_amount_cents is not null
    and (v.event_name = p_event.event_name or v.event_name is null and p_event.weighted_units is not null)
    and m.aggregation in ('sum', 'count')
    and v.counts
    and (m.deleted_at is null or m.deleted_at > coalesce(p_event.metered_at, p_event.recorded_at))
    and v.version = (
      select max(w.version)
      from metering.meter_versions w
      where w.meter_code = v.meter_code
        and w.created_at <= coalesce(p_event.metered_at, p_event.recorded_at)
        and w.effective_from <= coalesce(p_event.belongs_at, p_event.occurred_at)
    )
    and (
      v.filter = '{}'
      or metering.passes(
        v.filter, p_event.dimensions, p_event.user_id, p_event.workspace_id, p_event.resource_id, p_event.source
      )
    )
$$;

-- What a unit of an event costs, and what all of it costs: null when the event is not billed so.
create or replace function billing.unit_amount_cents(p_event metering.usage_events)
returns numeric
language sql
stable
security definer
set search_path = ''
as $$ select sum(p.unit_amount_cents) from billing.prices_of_event(p_event) p $$;

create or replace function billing.cost_cents(p_event metering.usage_events)
returns numeric
language sql
stable
security definer
set search_path = ''
as $$ select trim_scale(sum(p.units * p.unit_amount_cents)) from billing.prices_of_event(p_event) p $$;

alter function billing.prices_of_event(metering.usage_events) owner to goldleaves_kernel;
alter function billing.unit_amount_cents(metering.usage_events) owner to goldleaves_kernel;
alter function billing.cost_cents(metering.usage_events) owner to goldleaves_kernel;
grant execute on function billing.unit_amount_cents(metering.usage_events), billing.cost_cents(metering.usage_events) to member, platform_admin;
