-- Which plan an organization is on at each moment, as its invoices take it: read from the phases of its subscription
-- (billing.subscription_phases). Usage costs what the plan in force at its time says, and a fee is due for the seconds that it was in force.

-- The plan that usage is priced by in a phase; null: none, only the prices that are for everybody. Inlined, like the next two.
create or replace function billing.priced_plan(p_phase billing.subscription_phases)
returns text
language sql
immutable
as $$ select case when p_phase.status in ('trialing', 'active', 'past_due') then p_phase.plan_code end $$;

-- The phase at a moment: a row, or none, where no subscription was made before it.
create or replace function billing.phase_at(p_organization_id uuid, p_at timestamptz)
returns setof billing.subscription_phases
language sql
stable
as $$
  select s.*
  from billing.subscription_phases s
  where s.organization_id = p_organization_id
    and s.starts_at <= p_at
  order by s.starts_at desc
  limit 1
$$;

-- A time, cut where another plan begins to count, or a trial ends: slices n = 1, 2, … without gaps. p_plan_code is the plan of what lies before
-- the first phase. Phases that are priced alike are one slice.
create or replace function billing.plan_slices(p_organization_id uuid, p_start timestamptz, p_end timestamptz, p_plan_code text)
returns table (
  n integer, slice_start timestamptz, slice_end timestamptz, plan_code text, is_trial boolean, fee_by_stripe boolean
)
language sql
stable
set search_path = ''
as $$
  with begun as (
    select p_start as at, p_plan_code as plan_code, false as is_trial, false as fee_by_stripe
    where not exists (select from billing.phase_at(p_organization_id, p_start))
    union all
    select greatest(s.starts_at, p_start), billing.priced_plan(s), s.status = 'trialing', s.fee_by_stripe
    from billing.subscription_phases s
    where s.organization_id = p_organization_id
      and s.starts_at < p_end
      and s.starts_at >= coalesce((select f.starts_at from billing.phase_at(p_organization_id, p_start) f), p_start)
  ),
  changes as (
    select
      b.*,
      lag(b.at) over w is null or (lag(b.plan_code) over w, lag(b.is_trial) over w, lag(b.fee_by_stripe) over w)
        is distinct from (b.plan_code, b.is_trial, b.fee_by_stripe) as is_change
    from begun b
    window w as (order by b.at)
  )
  select
    (row_number() over (order by c.at))::integer, c.at, lead(c.at, 1, p_end) over (order by c.at), c.plan_code, c.is_trial, c.fee_by_stripe
  from changes c
  where c.is_change
$$;

-- What was used in each slice, as meters read it: a row a slice, meter and payer, like metering.measure(). What adds up is what was used in
-- it. What does not is one value for all slices in which it is charged, p_charged: {"seats": [1, 3]}. Of the largest and unique values a slice
-- has what it added to those before it, so that a seat that stays is paid once, by the plan in which it came; the smallest and the latest
-- value is in the slice in which it was read. A slice that is not charged, as a trial, has its own value, and takes nothing from others.
-- p_bounds: where slices begin, and where the last one ends.
create or replace function billing.measure_slices(
  p_organization_id uuid, p_bounds timestamptz[], p_filter jsonb default '{}', p_together boolean default false, p_charged jsonb default '{}'
)
returns table (n integer, meter_code text, metered boolean, billing_entity_id uuid, events bigint, value numeric)
language plpgsql
stable
set search_path = ''
as $$
begin
  if cardinality(p_bounds) = 2 then
    return query
      select m.bucket, m.meter_code, m.metered, m.billing_entity_id, m.events, m.quantity
      from metering.measure(p_organization_id, p_bounds, '{}', p_filter, true, p_together) m;
    return;
  end if;

  return query
    with measured as (
      select
        m.*, k.aggregation,
        -- Where all was voided nothing was read.
        m.metered and p_charged -> m.meter_code @> to_jsonb(m.bucket) and (m.events <> 0 or m.quantity <> 0) as is_charged
      from metering.measure(p_organization_id, p_bounds, '{}', p_filter, true, p_together, p_charged) m
      left join metering.meters k on m.metered and k.code = m.meter_code
    ),
    compared as (
      select
        m.*,
        max(m.quantity) over (one rows between unbounded preceding and 1 preceding) as largest_before,
        row_number() over (one) = count(*) over (partition by m.meter_code, m.billing_entity_id, m.is_charged) as is_last,
        row_number() over (partition by m.meter_code, m.billing_entity_id, m.is_charged order by m.quantity, m.bucket) = 1 as is_smallest
      from measured m
      window one as (partition by m.meter_code, m.billing_entity_id, m.is_charged order by m.bucket)
    )
    select
      c.bucket, c.meter_code, c.metered, c.billing_entity_id, c.events,
      case
        when c.is_charged and c.aggregation = 'max' then greatest(c.quantity, c.largest_before) - coalesce(c.largest_before, 0)
        when c.is_charged and c.aggregation = 'latest' and not c.is_last then 0
        when c.is_charged and c.aggregation = 'min' and not c.is_smallest then 0
        else c.quantity
      end
    from compared c;
end;
$$;

grant execute on function billing.priced_plan(billing.subscription_phases), billing.phase_at(uuid, timestamptz),
  billing.plan_slices(uuid, timestamptz, timestamptz, text),
  billing.measure_slices(uuid, timestamptz[], jsonb, boolean, jsonb) to goldleaves_kernel;
