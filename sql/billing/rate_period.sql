-- Rating: what the usage of a period costs, before it is an invoice. Summaries, previews, invoices and their verification all ask here, so
-- they cannot disagree. The order is always the same: rate, less the included quantity, within minimum and maximum, rounded once
-- (billing.rate, within_limits); then adjustments of earlier periods; tax comes with the invoice (billing.draft_invoices).
--
-- Returns a row a payer and charge. kind: fee (of the plan), usage, adjustment (late usage of the finalized period that begins at belongs_to,
-- or what was taken back of it), and unpriced: what nobody pays for, a name without a meter in it (unit null). groups: {"model": "large"}
-- for the usage that a price of its own is for, {} for all other. exact_cents is what amount_cents was before it was rounded.
--
-- Where two pay in a period, what they have used together is rated once. The person was there first: the first units are theirs. What a
-- minimum adds or a maximum takes off is shared like the rest, or by the time if there is no rest, and fees by the time. Rounded are the sums:
-- what one line loses the next one has, so that they add up to the whole.
create or replace function billing.rate_period(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_plan_code text default null,
  p_currency text default null, p_known_at timestamptz default 'infinity'
)
returns setof billing.rated_charge
language plpgsql
stable
set search_path = ''
as $$
declare
  v_organization tenancy.organizations;
  v_plan_code text;
  v_currency text;
  v_first_payer uuid;
  v_last_payer uuid;
  -- How much of the period the first payer has, when two of them do.
  v_first_share numeric := 1;
begin
  select * into v_organization from tenancy.organizations o where o.id = p_organization_id;
  v_plan_code := coalesce(p_plan_code, v_organization.plan);
  v_currency := coalesce(p_currency, v_organization.currency);
  v_first_payer := billing.payer(v_organization.billing_user_id, v_organization.billing_start_at, p_period_start);
  v_last_payer := billing.payer(
    v_organization.billing_user_id, v_organization.billing_start_at, p_period_end - interval '1 microsecond'
  );
  if v_first_payer is distinct from v_last_payer then
    v_first_share := extract(epoch from v_organization.billing_start_at - p_period_start) / extract(epoch from p_period_end - p_period_start);
  end if;

  return query
    with prices as materialized (
      select p.meter_code, p.dimension, p.dimension_value, p.minimum_cents, p.plan_code, billing.groups_of(p) as groups, billing.terms_of(p) as terms
      from billing.prices_in_force(v_plan_code, v_currency, p_period_start, p_known_at) p
    ),
    payers as materialized (
      select v_first_payer as user_id, v_first_share as share
      union
      select v_last_payer, case when v_first_payer is distinct from v_last_payer then 1 - v_first_share else 1 end
    ),
    late as materialized (
      select l.*, nullif(l.billing_entity_id, p_organization_id) as user_id
      from billing.late_usage(p_organization_id, p_period_start, p_period_end) l
    ),
    -- What was used in the period itself …
    used as materialized (
      select u.meter_code, u.metered, u.user_id, u.events - coalesce(l.events, 0) as events, u.quantity - coalesce(l.quantity, 0) as quantity
      from (
        select m.meter_code, m.metered, nullif(m.billing_entity_id, p_organization_id) as user_id, m.events, m.quantity
        from metering.measure(p_organization_id, array[p_period_start, p_period_end]) m
      ) as u
      left join (
        select t.meter_code, t.user_id, sum(t.events)::bigint as events, sum(t.quantity) as quantity
        from late t
        group by 1, 2
      ) as l
        on u.metered and l.meter_code = u.meter_code and l.user_id is not distinct from u.user_id
      where l.meter_code is null or u.events <> l.events or u.quantity <> l.quantity
    ),
    -- … of it what has a price of its own. Asked for by value: then it is exact also where groups were folded, or a meter keeps the
    -- dimension no more.
    named as materialized (
      select p.meter_code, p.groups, n.user_id, n.events - coalesce(l.events, 0) as events, n.quantity - coalesce(l.quantity, 0) as quantity
      from prices p
      cross join lateral (
        select nullif(m.billing_entity_id, p_organization_id) as user_id, m.events, m.quantity
        from metering.measure(
          p_organization_id, array[p_period_start, p_period_end], '{}',
          jsonb_build_object('meter', jsonb_build_array(p.meter_code), p.dimension, jsonb_build_array(p.dimension_value))
        ) m
      ) as n
      left join lateral (
        select sum(t.events)::bigint as events, sum(t.quantity) as quantity
        from late t
        where t.meter_code = p.meter_code
          and t.user_id is not distinct from n.user_id
          and t.groups @> p.groups
      ) as l on true
      where p.dimension is not null
    ),
    units as materialized (
      select n.meter_code, true as metered, n.groups, n.user_id, n.events, n.quantity
      from named n
      where n.events <> 0 or n.quantity <> 0
      union all
      select u.meter_code, u.metered, '{}', u.user_id, u.events - coalesce(n.events, 0), u.quantity - coalesce(n.quantity, 0)
      from used u
      left join (
        select a.meter_code, a.user_id, sum(a.events)::bigint as events, sum(a.quantity) as quantity from named a group by 1, 2
      ) as n
        on u.metered and n.meter_code = u.meter_code and n.user_id is not distinct from u.user_id
      where n.meter_code is null or u.events <> n.events or u.quantity <> n.quantity
    ),
    priced as materialized (
      select u.meter_code, u.groups, u.user_id, u.events, greatest(u.quantity, 0) as quantity, p.terms
      from units u
      join prices p on u.metered and p.meter_code = u.meter_code and p.groups = u.groups
      union all
      -- A minimum is due without any usage.
      select p.meter_code, p.groups, y.user_id, 0, 0, p.terms
      from prices p
      join metering.meters m on m.code = p.meter_code and (m.deleted_at is null or m.deleted_at > p_period_start)
      cross join payers y
      where p.minimum_cents > 0
        and not exists (
          select from units u
          where u.metered and u.meter_code = p.meter_code and u.groups = p.groups and u.user_id is not distinct from y.user_id
        )
    ),
    rated as (
      select
        c.*, r.exact_cents, r.tiers,
        sum(r.exact_cents) over whole as whole_cents,
        coalesce((select y.share from payers y where y.user_id is not distinct from c.user_id), 0) as time_share
      from (
        select
          x.*,
          sum(x.quantity) over (partition by x.meter_code, x.groups) as whole,
          sum(x.quantity) over (partition by x.meter_code, x.groups order by x.user_id nulls last) as up_to
        from priced x
      ) as c
      cross join lateral billing.rate(c.terms, c.up_to - c.quantity, c.up_to, c.whole) as r
      window whole as (partition by c.meter_code, c.groups)
    ),
    shared as (
      select
        d.*,
        billing.within_limits(d.terms, d.whole_cents) as due_cents,
        case
          when billing.within_limits(d.terms, d.whole_cents) = d.whole_cents then d.exact_cents
          when d.whole_cents > 0 then d.exact_cents * billing.within_limits(d.terms, d.whole_cents) / d.whole_cents
          else d.time_share * billing.within_limits(d.terms, d.whole_cents)
        end as share_cents
      from rated d
    ),
    summed as (
      select
        h.*,
        sum(h.share_cents) over (partition by h.meter_code, h.groups order by h.user_id nulls last) as sum_cents,
        lead(true) over (partition by h.meter_code, h.groups order by h.user_id nulls last) is null as is_last
      from shared h
    ),
    fees as (
      select
        y.user_id, l.name, p.terms, y.share,
        (p.terms ->> 'unit_amount_cents')::numeric as fee_cents,
        sum(y.share) over (order by y.user_id nulls last) as sum_share
      from prices p
      join billing.plans l on l.code = p.plan_code
      cross join payers y
      where p.meter_code is null
    ),
    adjusted as (
      select a.* from billing.adjustments(p_organization_id, p_period_start, p_period_end, v_plan_code, v_currency) a
      where exists (select from late)
    )
    select
      f.user_id, 'fee'::text, null::text, '{}'::jsonb, f.name, 'period'::text, 0::bigint, trim_scale(round(f.share, 6)), f.terms, null::jsonb,
      null::timestamptz, f.fee_cents * f.share, round(f.fee_cents * f.sum_share) - round(f.fee_cents * (f.sum_share - f.share)), null::numeric
    from fees f
    union all
    select
      s.user_id, 'usage', s.meter_code, s.groups, m.description, m.unit, s.events, trim_scale(s.quantity), s.terms, s.tiers, null, s.share_cents,
      round(case when s.is_last then s.due_cents else s.sum_cents end) - round(s.sum_cents - s.share_cents), null
    from summed s
    join metering.meters m on m.code = s.meter_code
    union all
    select
      a.payer_user_id, case when a.terms is null then 'unpriced' else 'adjustment' end, a.meter_code, a.groups, m.description, m.unit, a.events,
      a.quantity, a.terms, null, a.belongs_to, a.amount_cents, a.amount_cents, null
    from adjusted a
    join metering.meters m on m.code = a.meter_code
    union all
    select
      u.user_id, 'unpriced', u.meter_code, u.groups, coalesce(m.description, 'Recorded without a meter, not billed'), m.unit, u.events,
      trim_scale(u.quantity), null, null, null, 0, 0, null
    from units u
    left join metering.meters m on u.metered and m.code = u.meter_code
    where not exists (select from prices p where u.metered and p.meter_code = u.meter_code and p.groups = u.groups);
end;
$$;

-- Late usage as what it adds to, or takes from, what the period it belongs to costs: by the prices and the plan of its invoice, on top of what
-- that and the invoices since have billed of it. So late usage costs what it would have cost in time.
create or replace function billing.adjustments(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_plan_code text, p_currency text
)
returns table (
  payer_user_id uuid, meter_code text, groups jsonb, belongs_to timestamptz, events bigint, quantity numeric, terms jsonb, amount_cents numeric
)
language sql
stable
set search_path = ''
as $$
  with late as materialized (
    select l.*, nullif(l.billing_entity_id, p_organization_id) as user_id
    from billing.late_usage(p_organization_id, p_period_start, p_period_end) l
  ),
  periods as materialized (
    select b.belongs_to, i.plan_code, i.currency, i.rated_at
    from (select distinct l.belongs_to from late l) as b
    left join lateral (
      select v.plan_code, v.currency, coalesce(v.rated_at, v.issued_at) as rated_at
      from billing.invoices v
      where v.organization_id = p_organization_id
        and v.period_start = b.belongs_to
      limit 1
    ) as i on true
  ),
  prices as materialized (
    select d.belongs_to, p.meter_code, billing.groups_of(p) as groups, billing.terms_of(p) as terms
    from periods d
    cross join lateral billing.prices_in_force(
      coalesce(d.plan_code, p_plan_code), coalesce(d.currency, p_currency), d.belongs_to, coalesce(d.rated_at, 'infinity')
    ) p
    where p.meter_code is not null
  ),
  units as (
    select
      l.meter_code, l.user_id, l.belongs_to, coalesce(p.groups, '{}') as groups, p.terms,
      sum(l.events)::bigint as events, sum(l.quantity) as quantity
    from late l
    left join lateral (
      select r.groups, r.terms
      from prices r
      where r.belongs_to = l.belongs_to
        and r.meter_code = l.meter_code
        and l.groups @> r.groups
      order by r.groups = '{}'
      limit 1
    ) as p on true
    group by 1, 2, 3, 4, 5
  ),
  based as (
    select
      u.*,
      coalesce((
        select sum(n.quantity)
        from billing.invoices i
        join billing.invoice_lines n on n.organization_id = i.organization_id and n.invoice_id = i.id
        where i.organization_id = p_organization_id
          and i.period_start < p_period_start
          and n.meter_code = u.meter_code
          and n.groups = u.groups
          and case n.kind when 'usage' then i.period_start when 'adjustment' then n.belongs_to end = u.belongs_to
      ), 0) as base,
      sum(u.quantity) over (partition by u.meter_code, u.belongs_to, u.groups order by u.user_id nulls last) as up_to
    from units u
  )
  select
    b.user_id, b.meter_code, b.groups, b.belongs_to, b.events, trim_scale(b.quantity), b.terms,
    case
      when b.terms is null then 0
      else billing.amount_of(b.terms, b.base + b.up_to) - billing.amount_of(b.terms, b.base + b.up_to - b.quantity)
    end
  from based b
$$;

-- What usage costs, a row a meter, for those who do not ask who pays, or in which group. unit_amount_cents where every unit costs the same.
create or replace function billing.rate_meters(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns table (meter_code text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric)
language sql
stable
set search_path = ''
as $$
  select
    r.meter_code, r.unit, sum(r.events)::bigint, sum(r.quantity),
    case
      when count(*) = count(*) filter (where r.terms ->> 'model' = 'per_unit')
        and count(distinct (r.terms ->> 'unit_amount_cents')::numeric) = 1
        then min((r.terms ->> 'unit_amount_cents')::numeric)
    end,
    sum(r.amount_cents)
  from billing.rate_period(p_organization_id, p_period_start, p_period_end) r
  where r.kind <> 'fee'
  group by r.meter_code, r.unit
  order by r.unit is null, r.meter_code
$$;

grant execute on function billing.rate_period(uuid, timestamptz, timestamptz, text, text, timestamptz),
  billing.adjustments(uuid, timestamptz, timestamptz, text, text), billing.rate_meters(uuid, timestamptz, timestamptz) to goldleaves_kernel;
