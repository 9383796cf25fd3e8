-- Rating: what the usage of a period costs, before it is an invoice. Summaries, previews, invoices and their verification all ask here, so
-- they cannot disagree. The order is always the same: rate, less the included quantity, within minimum and maximum, rounded once
-- (billing.rate, within_limits); then adjustments of earlier periods; tax comes with the invoice (billing.draft_invoices).
--
-- Returns a row a payer and charge. kind: fee (of the plan), usage, adjustment (late usage of the finalized period that begins at belongs_to,
-- or what was taken back of it), and unpriced: what nobody pays for, a name without a meter in it (unit null). groups: {"model": "large"}
-- for the usage that a price of its own is for, {} for all other. exact_cents is what amount_cents was before it was rounded. quantity is
-- in units, never below zero; value what the meter read for it, of which late usage will be a part.
--
-- Where two pay in a period, what they have used together is rated once: they pay as much as one would. The person was there first: the first
-- units are theirs, up to all that there are. What is greatest, least, latest or unique over both is asked for both, so that a seat, or a
-- user, that was there before and after is paid for once. What a minimum adds or a maximum takes off is shared like the rest, or by the
-- time if there is no rest, and fees by the time; so is the fee of a period that a change of schedule has cut short. Rounded are the sums:
-- what one line loses the next one has.
--
-- Values are added and taken away before they are divided into units: a third and two thirds are one only then.
create or replace function billing.rate_period(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_plan_code text default null,
  p_currency text default null, p_known_at timestamptz default 'infinity'
)
returns setof billing.rated_charge
language plpgsql
stable
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
declare
  v_organization tenancy.organizations;
  v_bounds timestamptz[] := array[p_period_start, p_period_end];
  v_plan_code text;
  v_currency text;
  v_first_payer uuid;
  v_last_payer uuid;
  v_seconds numeric := extract(epoch from p_period_end - p_period_start);
  -- How much of it the first payer has, when two of them do.
  v_first_seconds numeric := v_seconds;
  v_month_seconds numeric;
begin
  select * into v_organization from tenancy.organizations o where o.id = p_organization_id;
  v_month_seconds := billing.month_seconds(
    coalesce(
      (select p.timezone from billing.billing_periods p where p.organization_id = p_organization_id and p.period_start = p_period_start),
      v_organization.billing_timezone
    ),
    p_period_start, p_period_end
  );
  v_plan_code := coalesce(p_plan_code, v_organization.plan);
  v_currency := coalesce(p_currency, v_organization.currency);
  v_first_payer := billing.payer(v_organization.billing_user_id, v_organization.billing_start_at, p_period_start);
  v_last_payer := billing.payer(
    v_organization.billing_user_id, v_organization.billing_start_at, p_period_end - interval '1 microsecond'
  );
  if v_first_payer is distinct from v_last_payer then
    v_first_seconds := extract(epoch from v_organization.billing_start_at - p_period_start);
  end if;

  return query
    with prices as materialized (
      select p.meter_code, p.dimension, p.minimum_cents, p.plan_code, billing.groups_of(p) as groups, billing.terms_of(p) as terms
      from billing.prices_in_force(v_plan_code, v_currency, p_period_start, p_known_at) p
    ),
    payers as materialized (
      select v_first_payer as user_id, v_first_seconds as seconds
      union
      select v_last_payer, case when v_first_payer is distinct from v_last_payer then v_seconds - v_first_seconds else v_seconds end
    ),
    late as materialized (
      select l.*, nullif(l.billing_entity_id, p_organization_id) as user_id
      from billing.late_usage(p_organization_id, p_period_start, p_period_end) l
    ),
    measured as materialized (
      select m.meter_code, m.metered, nullif(m.billing_entity_id, p_organization_id) as user_id, m.events, m.quantity as value
      from metering.measure(p_organization_id, v_bounds, '{}', '{}', true) m
    ),
    -- What was used in the period itself …
    used as materialized (
      select u.meter_code, u.metered, u.user_id, u.events - coalesce(l.events, 0) as events, u.value - coalesce(l.value, 0) as value
      from measured u
      left join (
        select t.meter_code, t.user_id, sum(t.events)::bigint as events, sum(t.value) as value
        from late t
        group by 1, 2
      ) as l
        on u.metered and l.meter_code = u.meter_code and l.user_id is not distinct from u.user_id
      where l.meter_code is null or u.events <> l.events or u.value <> l.value
    ),
    -- … of it what has a price of its own. Asked for by value: then it is exact also where groups were folded, or a meter keeps the
    -- dimension no more.
    named as materialized (
      select p.meter_code, p.groups, n.user_id, n.events - coalesce(l.events, 0) as events, n.value - coalesce(l.value, 0) as value
      from prices p
      cross join lateral (
        select nullif(m.billing_entity_id, p_organization_id) as user_id, m.events, m.quantity as value
        from metering.measure(p_organization_id, v_bounds, '{}', jsonb_build_object('meter', p.meter_code) || p.groups, true) m
      ) as n
      left join lateral (
        select sum(t.events)::bigint as events, sum(t.value) as value
        from late t
        where t.meter_code = p.meter_code
          and t.user_id is not distinct from n.user_id
          and t.groups @> p.groups
      ) as l on true
      where p.dimension is not null
        -- Each of them takes a millisecond, and most organizations use few of the meters that have such prices. Levels of groups may be
        -- there where those of all groups come to nothing.
        and (
          p.meter_code in (select u.meter_code from measured u where u.metered)
          or exists (select from metering.meters m where m.code = p.meter_code and m.aggregation = 'weighted_sum')
        )
    ),
    units as materialized (
      select n.meter_code, true as metered, n.groups, n.user_id, n.events, n.value
      from named n
      where n.events <> 0 or n.value <> 0
      union all
      select u.meter_code, u.metered, '{}', u.user_id, u.events - coalesce(n.events, 0), u.value - coalesce(n.value, 0)
      from used u
      left join (
        select a.meter_code, a.user_id, sum(a.events)::bigint as events, sum(a.value) as value from named a group by 1, 2
      ) as n
        on u.metered and n.meter_code = u.meter_code and n.user_id is not distinct from u.user_id
      where n.meter_code is null or u.events <> n.events or u.value <> n.value
    ),
    -- What is no sum, over both payers.
    together as materialized (
      select m.meter_code, m.quantity as value
      from metering.measure(
        p_organization_id, v_bounds, '{}',
        jsonb_build_object('meter', (
          select coalesce(jsonb_agg(p.meter_code), '[]')
          from prices p
          join metering.meters m on m.code = p.meter_code
          where m.aggregation in ('max', 'min', 'latest', 'unique')
        )),
        true, true
      ) m
      where v_first_payer is distinct from v_last_payer
    ),
    priced as materialized (
      select u.meter_code, u.groups, u.user_id, u.events, u.value, p.terms
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
    summed as (
      select
        x.*,
        metering.value_of_unit(m.aggregation, m.unit_size) as unit_value,
        m.description,
        m.unit,
        greatest(coalesce(t.value, sum(x.value) over (partition by x.meter_code, x.groups)), 0) as whole_value,
        lead(true) over (partition by x.meter_code, x.groups order by x.user_id nulls last) is null as is_last
      from priced x
      join metering.meters m on m.code = x.meter_code
      left join together t on t.meter_code = x.meter_code
    ),
    reached as (
      select s.*, case when s.is_last then s.whole_value else least(greatest(s.value, 0), s.whole_value) end as to_value
      from summed s
    ),
    begun as (
      select r.*, lag(r.to_value, 1, 0::numeric) over (partition by r.meter_code, r.groups order by r.user_id nulls last) as from_value
      from reached r
    ),
    rated as (
      select
        b.*, r.exact_cents, r.tiers,
        sum(r.exact_cents) over (partition by b.meter_code, b.groups) as whole_cents,
        coalesce((select y.seconds from payers y where y.user_id is not distinct from b.user_id), 0) as seconds
      from begun b
      cross join lateral billing.rate(
        b.terms, billing.units_of(b.from_value, b.unit_value), billing.units_of(b.to_value, b.unit_value),
        billing.units_of(b.whole_value, b.unit_value)
      ) as r
    ),
    shared as (
      select
        d.*,
        l.due_cents,
        case
          when l.due_cents = d.whole_cents then d.exact_cents
          when d.whole_cents > 0 then round(billing.units_of(d.exact_cents * l.due_cents, d.whole_cents), 50)
          else d.seconds * l.due_cents / v_seconds
        end as share_cents
      from rated d
      cross join lateral billing.within_limits(d.terms, d.whole_cents) as l (due_cents)
    ),
    carried as (
      select h.*, sum(h.share_cents) over (partition by h.meter_code, h.groups order by h.user_id nulls last) as sum_cents
      from shared h
    ),
    fees as (
      select
        y.user_id, l.name, p.terms, y.seconds,
        (p.terms ->> 'unit_amount_cents')::numeric as fee_cents,
        sum(y.seconds) over (partition by l.code order by y.user_id nulls last) as sum_seconds
      from prices p
      join billing.plans l on l.code = p.plan_code
      cross join payers y
      where p.meter_code is null
    ),
    adjusted as (
      select a.* from billing.adjustments(p_organization_id, p_period_start, p_period_end, v_plan_code, v_currency, p_known_at) a
      where exists (select from late)
    )
    select
      f.user_id, 'fee'::text, null::text, '{}'::jsonb, f.name, 'period'::text, 0::bigint, trim_scale(round(f.seconds / v_month_seconds, 6)),
      f.terms, null::jsonb, null::timestamptz, f.fee_cents * f.seconds / v_month_seconds,
      round(f.fee_cents * f.sum_seconds / v_month_seconds) - round(f.fee_cents * (f.sum_seconds - f.seconds) / v_month_seconds), null::numeric
    from fees f
    union all
    select
      c.user_id, 'usage', c.meter_code, c.groups, c.description, c.unit, c.events, trim_scale((c.to_value - c.from_value) / c.unit_value), c.terms,
      c.tiers, null, billing.shown(c.share_cents),
      round(case when c.is_last then c.due_cents else c.sum_cents end) - round(c.sum_cents - c.share_cents), c.value
    from carried c
    union all
    select
      a.payer_user_id, case when a.terms is null then 'unpriced' else 'adjustment' end, a.meter_code, a.groups, m.description, m.unit, a.events,
      a.quantity, a.terms, null, a.belongs_to, a.amount_cents, a.amount_cents, a.value
    from adjusted a
    join metering.meters m on m.code = a.meter_code
    union all
    select
      u.user_id, 'unpriced', u.meter_code, u.groups, coalesce(m.description, 'Recorded without a meter, not billed'), m.unit, u.events,
      trim_scale(greatest(
        u.value / coalesce(metering.value_of_unit(m.aggregation, m.unit_size), 1), case when m.allow_negative then 0 end
      )),
      null, null, null, 0, 0, u.value
    from units u
    left join metering.meters m on u.metered and m.code = u.meter_code
    where not exists (select from prices p where u.metered and p.meter_code = u.meter_code and p.groups = u.groups);
end;
$$;

-- Late usage as what it adds to, or takes from, what the period it belongs to costs: by the prices and the plan of its invoice, on top of what
-- that and the invoices since have billed of it, or will, where they are not made yet. So late usage costs what it would have cost in time.
create or replace function billing.adjustments(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_plan_code text, p_currency text, p_known_at timestamptz
)
returns table (
  payer_user_id uuid, meter_code text, groups jsonb, belongs_to timestamptz, events bigint, quantity numeric, terms jsonb, amount_cents numeric,
  value numeric
)
language sql
stable
set search_path = ''
as $$
  with open_since as materialized (
    select coalesce(max(b.period_end), p_period_start) as at
    from billing.billing_periods b
    where b.organization_id = p_organization_id
      and b.period_end <= p_period_start
      and b.status = 'finalized'
  ),
  late as materialized (
    select l.*, false as is_earlier
    from billing.late_usage(p_organization_id, p_period_start, p_period_end) l
    union all
    select l.*, true
    from open_since s
    cross join lateral billing.late_usage(p_organization_id, s.at, p_period_start) l
    where s.at < p_period_start
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
      coalesce(d.plan_code, p_plan_code), coalesce(d.currency, p_currency), d.belongs_to, coalesce(d.rated_at, p_known_at)
    ) p
    where p.meter_code is not null
  ),
  units as (
    select
      l.is_earlier, l.meter_code, nullif(l.billing_entity_id, p_organization_id) as user_id, l.belongs_to, coalesce(p.groups, '{}') as groups,
      p.terms, sum(l.events)::bigint as events, sum(l.value) as value
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
    group by 1, 2, 3, 4, 5, 6
    having sum(l.events) <> 0 or sum(l.value) <> 0
  ),
  based as (
    select
      u.*,
      m.unit_value,
      -- A period that lies before the first one that was closed has none: the minimum of it is not billed yet.
      exists (select from periods d where d.belongs_to = u.belongs_to and d.rated_at is not null) as has_invoice,
      coalesce((
        -- Invoices from before there were values have quantities alone.
        select sum(coalesce(n.value, n.quantity * m.unit_value))
        from billing.invoices i
        join billing.invoice_lines n on n.organization_id = i.organization_id and n.invoice_id = i.id
        where i.organization_id = p_organization_id
          and i.period_start < p_period_start
          and n.meter_code = u.meter_code
          and n.groups = u.groups
          and case n.kind when 'usage' then i.period_start when 'adjustment' then n.belongs_to end = u.belongs_to
      ), 0) + coalesce((
        select sum(e.value)
        from units e
        where e.is_earlier
          and e.meter_code = u.meter_code
          and e.belongs_to = u.belongs_to
          and e.groups = u.groups
      ), 0) as base_value,
      sum(u.value) over (partition by u.meter_code, u.belongs_to, u.groups order by u.user_id nulls last) as up_to_value
    from units u
    cross join lateral (
      select metering.value_of_unit(k.aggregation, k.unit_size) as unit_value from metering.meters k where k.code = u.meter_code
    ) as m
    where not u.is_earlier
  )
  select
    b.user_id, b.meter_code, b.groups, b.belongs_to, b.events, trim_scale(b.value / b.unit_value), b.terms,
    case
      when b.terms is null then 0
      else
        case when b.has_invoice or b.base_value + b.up_to_value > 0
          then billing.amount_of(b.terms, billing.units_of(b.base_value + b.up_to_value, b.unit_value))
          else 0
        end
        - case when b.has_invoice or b.base_value + b.up_to_value - b.value > 0
          then billing.amount_of(b.terms, billing.units_of(b.base_value + b.up_to_value - b.value, b.unit_value))
          else 0
        end
    end,
    b.value
  from based b
$$;

-- What usage costs, a row a meter, for those who do not ask who pays, or in which group.
create or replace function billing.rate_meters(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns table (meter_code text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric)
language sql
stable
set search_path = ''
as $$
  select
    r.meter_code, r.unit, sum(r.events)::bigint, sum(r.quantity),
    case when count(*) = count(billing.unit_amount_of(r.terms)) and count(distinct billing.unit_amount_of(r.terms)) = 1
      then min(billing.unit_amount_of(r.terms))
    end,
    sum(r.amount_cents)
  from billing.rate_period(p_organization_id, p_period_start, p_period_end) r
  where r.kind <> 'fee'
  group by r.meter_code, r.unit
  order by r.unit is null, r.meter_code
$$;

grant execute on function billing.rate_period(uuid, timestamptz, timestamptz, text, text, timestamptz),
  billing.adjustments(uuid, timestamptz, timestamptz, text, text, timestamptz),
  billing.rate_meters(uuid, timestamptz, timestamptz) to goldleaves_kernel;
