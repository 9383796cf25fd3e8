-- Rating: what the usage of one period costs, a row a payer and meter. The summary, the recalculation and the invoices all ask here,
-- so they cannot disagree. Only meters with a price are billed. Money is numeric all the way; each line is rounded once, half
-- away from zero, to whole minor units.
create or replace function billing.rate_period(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns table (
  payer_user_id uuid, meter_code text, description text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric
)
language sql
stable
set search_path = ''
as $$
  select
    nullif(u.billing_entity_id, p_organization_id),
    u.meter_code,
    coalesce(m.description, 'Recorded without a meter, not billed'),
    m.unit,
    u.events,
    u.quantity,
    p.unit_amount_cents,
    round(coalesce(u.quantity * p.unit_amount_cents, 0), 0)
  from metering.measure(p_organization_id, array[p_period_start, p_period_end]) u
  join tenancy.organizations o on o.id = p_organization_id
  left join metering.meters m on u.metered and m.code = u.meter_code
  cross join lateral billing.price_of(m.code, o.currency, p_period_start) as p
  order by m.code nulls last, u.meter_code, nullif(u.billing_entity_id, p_organization_id) nulls last
$$;

-- The same, a row a meter, for those who do not ask who pays. Amounts are rounded for each payer: they add up to the invoices.
create or replace function billing.rate_meters(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns table (meter_code text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric)
language sql
stable
set search_path = ''
as $$
  select r.meter_code, r.unit, sum(r.events)::bigint, sum(r.quantity), r.unit_amount_cents, sum(r.amount_cents)
  from billing.rate_period(p_organization_id, p_period_start, p_period_end) r
  group by r.meter_code, r.unit, r.unit_amount_cents
  order by r.unit is null, r.meter_code
$$;

grant execute on function billing.rate_period(uuid, timestamptz, timestamptz),
  billing.rate_meters(uuid, timestamptz, timestamptz) to goldleaves_kernel;

-- The prices that count for an event, of each meter that adds it up or counts it: those in force when its period begins, as its invoice
-- takes them. units: how many units of the meter the event is.
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
  cross join billing.find_period(p_event.organization_id, p_event.occurred_at) as f
  cross join lateral billing.price_of(m.code, o.currency, f.period_start) as p
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
