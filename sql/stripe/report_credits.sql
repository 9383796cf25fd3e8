-- When a billing period is finalized its reports come to an end. What is left of a unit goes on to the next period; what was reported too much,
-- and could not be taken back, is credited: with what it costs by our own prices, on the customer's next invoice at Stripe.

-- Debts of open periods are tried again: a report that was on its way may be taken back now. Periods that are finalized are closed.
create or replace function stripe.settle_report_periods(p_is_live boolean)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_period record;
begin
  for v_period in
    select r.organization_id, r.meter_code, r.period_start, b.status
    from stripe.report_periods r
    join stripe.customers c on c.organization_id = r.organization_id and c.deleted_at is null and c.is_live = p_is_live
    join stripe.meters k on k.meter_code = r.meter_code
    join billing.billing_periods b on b.organization_id = r.organization_id and b.period_start = r.period_start
    where r.closed_at is null
      and (b.status = 'finalized' or r.carried < 0)
    order by r.period_start
    limit 1000
  loop
    if not pg_try_advisory_xact_lock(stripe.report_lock_key(v_period.organization_id, v_period.meter_code)) then
      continue;
    end if;
    if v_period.status = 'finalized' then
      perform stripe.close_report_period(v_period.organization_id, v_period.meter_code, v_period.period_start);
    else
      perform stripe.report_hours(v_period.organization_id, v_period.meter_code, v_period.period_start, '{}', 0, '0'::xid8);
    end if;
  end loop;
end;
$$;

-- The caller holds the lock of the meter. Not before all of it is rolled up and reported, and Stripe has said what it takes back.
create or replace function stripe.close_report_period(p_organization_id uuid, p_meter_code text, p_period_start timestamptz)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_period billing.billing_periods;
  v_next billing.billing_periods;
  v_position metering.rollup_position;
  v_carried numeric;
  v_unit_value numeric;
begin
  select * into strict v_period
  from billing.billing_periods b
  where b.organization_id = p_organization_id and b.period_start = p_period_start;
  select * into strict v_position from metering.rollup_position;
  if metering.is_unrolled(p_organization_id, v_period.period_start, v_period.period_end, v_position, array[null::text]) then
    return;
  end if;

  -- All its hours once more: also what grew with time alone.
  perform stripe.report_hours(
    p_organization_id, p_meter_code, p_period_start,
    coalesce(
      (
        select array_agg(distinct r.bucket_start)
        from metering.usage_rollups r
        where r.organization_id = p_organization_id
          and r.grain = 'hour'
          and r.meter_code = p_meter_code
          and r.bucket_start >= v_period.period_start
          and r.bucket_start < v_period.period_end
      ),
      array[greatest(p_period_start, date_trunc('hour', v_period.period_end - interval '1 hour', 'UTC'))]
    ),
    v_position.generation, v_position.xid
  );
  select r.carried into strict v_carried
  from stripe.report_periods r
  where r.organization_id = p_organization_id and r.meter_code = p_meter_code and r.period_start = p_period_start
  for update;
  if exists (
    select
    from stripe.meter_event_reports r
    where r.organization_id = p_organization_id
      and r.meter_code = p_meter_code
      and r.period_start = p_period_start
      and (r.status = 'canceling' or v_carried < 0 and r.status = 'pending')
  ) then
    return;
  end if;

  if v_carried < 0 then
    select metering.value_of_unit(m.aggregation, m.unit_size) into v_unit_value from metering.meters m where m.code = p_meter_code;
    perform stripe.credit_reports(p_organization_id, p_meter_code, p_period_start, billing.units_of(-v_carried, v_unit_value));
    update stripe.report_periods r
    set credited = r.credited - r.carried, carried = 0, closed_at = clock_timestamp()
    where r.organization_id = p_organization_id and r.meter_code = p_meter_code and r.period_start = p_period_start;
    return;
  end if;

  select * into v_next
  from billing.billing_periods b
  where b.organization_id = p_organization_id and b.period_start = v_period.period_end and b.invoice_mode = 'stripe_meters';
  if v_next.period_start is null then
    -- Less than a unit. Our own invoice does not begin with it.
    v_carried := 0;
  end if;
  update stripe.report_periods r
  set carried = r.carried - v_carried, passed_on = r.passed_on - v_carried, closed_at = clock_timestamp()
  where r.organization_id = p_organization_id and r.meter_code = p_meter_code and r.period_start = p_period_start;
  if v_carried > 0 then
    insert into stripe.report_periods as r (organization_id, meter_code, period_start, carried, passed_on)
    values (p_organization_id, p_meter_code, v_next.period_start, v_carried, v_carried)
    on conflict (organization_id, meter_code, period_start) do update
    set carried = r.carried + excluded.carried, passed_on = r.passed_on + excluded.passed_on;
  end if;
end;
$$;

-- What units that were reported too much cost: what all that Stripe was told of costs by the price of the period, less what the rest does.
-- Where late usage of earlier periods was taken back, it may be more than Stripe was told of in this one: that costs what our statement says.
create or replace function stripe.credit_reports(p_organization_id uuid, p_meter_code text, p_period_start timestamptz, p_units numeric)
returns void
language sql
volatile
set search_path = ''
as $$
  with period as (
    select
      b.period_start, b.period_end, coalesce(i.plan_code, o.plan) as plan_code, coalesce(i.currency, o.currency) as currency,
      coalesce(i.rated_at, now()) as rated_at
    from billing.billing_periods b
    join tenancy.organizations o on o.id = b.organization_id
    left join lateral (
      select v.* from billing.invoices v where v.organization_id = b.organization_id and v.period_start = b.period_start limit 1
    ) as i on true
    where b.organization_id = p_organization_id
      and b.period_start = p_period_start
  ),
  told as (
    select coalesce(sum(r.quantity), 0) as units
    from stripe.meter_event_reports r
    where r.organization_id = p_organization_id
      and r.meter_code = p_meter_code
      and r.period_start = p_period_start
      and r.status <> 'canceled'
  ),
  price as (
    select r.terms
    from period p
    cross join lateral billing.prices_of_period(p_organization_id, p.period_start, p.period_end, p.plan_code, p.currency, p.rated_at) r
    where r.meter_code = p_meter_code
      and r.groups = '{}'
    order by r.slice_start desc
    limit 1
  ),
  late as (
    select sum(l.amount_cents) / nullif(sum(l.quantity), 0) as unit_amount_cents
    from billing.invoices i
    join billing.invoice_lines l on l.organization_id = i.organization_id and l.invoice_id = i.id
    where i.organization_id = p_organization_id
      and i.period_start = p_period_start
      and l.meter_code = p_meter_code
      and l.kind = 'adjustment'
      and l.quantity < 0
  ),
  credit as (
    select
      round(coalesce(w.exact_cents - k.exact_cents, 0) + greatest(p_units - t.units, 0) * coalesce(l.unit_amount_cents, 0)) as amount_cents
    from told t
    cross join late l
    left join price r on true
    left join lateral billing.rate(r.terms, 0, t.units, t.units) w on r.terms is not null
    left join lateral billing.rate(r.terms, 0, greatest(t.units - p_units, 0), greatest(t.units - p_units, 0)) k on r.terms is not null
  )
  insert into stripe.invoice_items (
    organization_id, id, kind, meter_code, customer_id, amount_cents, currency, description, period_start, period_end
  )
  select
    p_organization_id, stripe.item_id(p_organization_id, 'credit', p_period_start, null, null, p_meter_code), 'credit', p_meter_code, c.id, -d.amount_cents, p.currency,
    format('%s, taken back after it was reported', m.description), p.period_start, p.period_end
  from period p
  cross join credit d
  join metering.meters m on m.code = p_meter_code
  join stripe.customers c on c.organization_id = p_organization_id and c.deleted_at is null
  where d.amount_cents > 0
  on conflict do nothing
$$;

grant execute on function stripe.settle_report_periods(boolean), stripe.close_report_period(uuid, text, timestamptz),
  stripe.credit_reports(uuid, text, timestamptz, numeric) to goldleaves_kernel;
