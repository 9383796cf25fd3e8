-- Rating: what the usage of one period costs, a row a meter. The summary, the recalculation and the invoice all ask here, so
-- they cannot disagree. Only meters with a price are billed. Money is numeric all the way; each line is rounded once, half
-- away from zero, to whole minor units.
create or replace function billing.rate_period(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns table (
  meter_code text, description text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric
)
language sql
stable
set search_path = ''
as $$
  with used as (
    select
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
    group by 1, 2
  )
  select
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
  order by m.code nulls last, u.event_name
$$;

-- Bounds of the period that a client names by its first day in the organization's timezone; null is the current one.
create or replace function billing.period_from_date(
  p_organization_id uuid, p_first_day date, out period_start timestamptz, out period_end timestamptz, out timezone text, out status text
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_at timestamptz := now();
begin
  if p_first_day is not null then
    if p_first_day not between (now() - interval '5 years')::date and (now() + interval '1 year')::date then
      raise exception using
        errcode = 'PT404',
        message = format('PERIOD_NOT_FOUND: no billing period starts on %s', p_first_day),
        hint = 'GET /billing_periods lists them; start_date is what to send.';
    end if;
    select p_first_day::timestamp at time zone o.billing_timezone into v_at
    from tenancy.organizations o
    where o.id = p_organization_id;
  end if;

  select f.period_start, f.period_end, f.timezone, f.status into period_start, period_end, timezone, status
  from billing.find_period(p_organization_id, v_at) f;

  if p_first_day is not null and (period_start at time zone timezone)::date <> p_first_day then
    raise exception using
      errcode = 'PT404',
      message = format('PERIOD_NOT_FOUND: no billing period starts on %s', p_first_day),
      hint = format('The period around that day starts on %s.', (period_start at time zone timezone)::date);
  end if;
end;
$$;

grant execute on function billing.rate_period(uuid, timestamptz, timestamptz), billing.period_from_date(uuid, date) to goldleaves_kernel;
