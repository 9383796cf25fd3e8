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
  with used as (
    select
      e.payer_user_id,
      e.event_name,
      -- What was recorded before its meter existed is never billed, also not later.
      e.recorded_at >= m.created_at as metered,
      count(*) as events,
      sum(e.quantity) as quantity
    from metering.usage_events e
    left join metering.meters m on m.event_name = e.event_name
    where e.organization_id = p_organization_id
      and e.occurred_at >= p_period_start
      and e.occurred_at < p_period_end
    group by 1, 2, 3
  )
  select
    u.payer_user_id,
    coalesce(m.code, u.event_name),
    coalesce(m.description, 'Recorded without a meter, not billed'),
    m.unit,
    u.events,
    case when m.aggregation = 'count' then u.events else u.quantity end,
    p.unit_amount_cents,
    round(coalesce(case when m.aggregation = 'count' then u.events else u.quantity end * p.unit_amount_cents, 0), 0)
  from used u
  join tenancy.organizations o on o.id = p_organization_id
  left join metering.meters m on m.event_name = u.event_name and u.metered
  left join lateral (
    select r.unit_amount_cents
    from billing.prices r
    where r.meter_code = m.code
      and r.currency = o.currency
      and r.effective_from <= p_period_start
    order by r.effective_from desc
    limit 1
  ) as p on true
  order by m.code nulls last, u.event_name, u.payer_user_id nulls last
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

-- What a unit of an event costs, for those who look at single events: the price that its invoice takes, which is the one in
-- force when its period begins. Null when the event is not billed.
create or replace function billing.unit_amount_cents(
  p_organization_id uuid, p_event_name text, p_occurred_at timestamptz, p_recorded_at timestamptz
)
returns numeric
language sql
stable
security definer
set search_path = ''
as $$
  select p.unit_amount_cents
  from metering.meters m
  join tenancy.organizations o on o.id = p_organization_id
  join billing.prices p on p.meter_code = m.code and p.currency = o.currency
  where m.event_name = p_event_name
    and m.created_at <= p_recorded_at
    and p.effective_from <= (select f.period_start from billing.find_period(p_organization_id, p_occurred_at) f)
  order by p.effective_from desc
  limit 1
$$;

alter function billing.unit_amount_cents(uuid, text, timestamptz, timestamptz) owner to goldleaves_kernel;
grant execute on function billing.unit_amount_cents(uuid, text, timestamptz, timestamptz) to member, platform_admin;
