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
-- Where the plan changes in a period, it is cut into slices (billing.plan_slices). Usage of each is priced by its plan; what one price is in
-- force for, in one slice or in several, is rated together. p_plan_code: the plan of what lies before the first phase of a subscription.
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
set jit = off
as $$
declare
  v_organization tenancy.organizations;
  v_plan_code text;
  v_currency text;
  v_first_payer uuid;
  v_last_payer uuid;
  -- When the second payer begins, if there is one.
  v_handed_over_at timestamptz := p_period_end;
  v_month_seconds numeric;
  v_bounds timestamptz[];
begin
  select * into v_organization from tenancy.organizations o where o.id = p_organization_id;
  v_month_seconds := billing.month_seconds(
    coalesce(
      (select p.timezone from billing.billing_periods p where p.organization_id = p_organization_id and p.period_start = p_period_start),
      v_organization.billing_timezone
    ),
    p_period_start, p_period_end
  );
  v_plan_code := coalesce(
    p_plan_code,
    -- As the invoice takes it.
    (select f.plan_code from billing.phase_at(p_organization_id, p_period_end - interval '1 microsecond') f),
    v_organization.plan
  );
  v_currency := coalesce(p_currency, v_organization.currency);
  v_bounds := array(
    select s.slice_start from billing.plan_slices(p_organization_id, p_period_start, p_period_end, v_plan_code) s order by s.n
  ) || p_period_end;
  v_first_payer := billing.payer(v_organization.billing_user_id, v_organization.billing_start_at, p_period_start);
  v_last_payer := billing.payer(
    v_organization.billing_user_id, v_organization.billing_start_at, p_period_end - interval '1 microsecond'
  );
  if v_first_payer is distinct from v_last_payer then
    v_handed_over_at := v_organization.billing_start_at;
  end if;

  return query
    with prices as materialized (
      select p.* from billing.prices_of_period(p_organization_id, p_period_start, p_period_end, v_plan_code, v_currency, p_known_at) p
    ),
    payers as materialized (
      select v_first_payer as user_id, p_period_start as since, v_handed_over_at as until
      union all
      select v_last_payer, v_handed_over_at, p_period_end where v_handed_over_at < p_period_end
    ),
    -- How much of the time of a price each of them pays.
    shares as materialized (
      select
        p.price_key, y.user_id,
        sum(extract(epoch from greatest(least(p.slice_end, y.until) - greatest(p.slice_start, y.since), interval '0'))) as seconds
      from prices p
      cross join payers y
      group by 1, 2
    ),
    late as materialized (
      select b.n, l.*, nullif(l.billing_entity_id, p_organization_id) as user_id
      from generate_subscripts(v_bounds, 1) as b (n)
      cross join lateral billing.late_usage(p_organization_id, v_bounds[b.n], v_bounds[b.n + 1]) l
      where b.n < cardinality(v_bounds)
    ),
    -- In which slices what does not add up is paid for.
    charged as materialized (
      select coalesce(jsonb_object_agg(p.meter_code, p.slices), '{}') as slices
      from (
        select p.meter_code, jsonb_agg(p.n) as slices
        from prices p
        join metering.meters m on m.code = p.meter_code
        where m.aggregation in ('max', 'min', 'latest', 'unique')
          and not p.terms ? 'trial'
        group by 1
      ) as p
    ),
    measured as materialized (
      select m.n, m.meter_code, m.metered, nullif(m.billing_entity_id, p_organization_id) as user_id, m.events, m.value
      from billing.measure_slices(p_organization_id, v_bounds, p_charged => (select c.slices from charged c)) m
    ),
    -- What was used in the period itself …
    used as materialized (
      select u.n, u.meter_code, u.metered, u.user_id, u.events - coalesce(l.events, 0) as events, u.value - coalesce(l.value, 0) as value
      from measured u
      left join (
        select t.n, t.meter_code, t.user_id, sum(t.events)::bigint as events, sum(t.value) as value
        from late t
        group by 1, 2, 3
      ) as l
        on u.metered and l.n = u.n and l.meter_code = u.meter_code and l.user_id is not distinct from u.user_id
      where l.meter_code is null or u.events <> l.events or u.value <> l.value
    ),
    -- … of it what has a price of its own. Asked for by value: then it is exact also where groups were folded, or a meter keeps the
    -- dimension no more.
    asked as materialized (
      select p.meter_code, p.groups
      from prices p
      where p.dimension is not null
        -- Each of them takes a millisecond, and most organizations use few of the meters that have such prices. Levels of groups may be
        -- there where those of all groups come to nothing.
        and (
          p.meter_code in (select u.meter_code from measured u where u.metered)
          or exists (select from metering.meters m where m.code = p.meter_code and m.aggregation = 'weighted_sum')
        )
      group by 1, 2
    ),
    named as materialized (
      select a.meter_code, a.groups, m.n, m.user_id, m.events - coalesce(l.events, 0) as events, m.value - coalesce(l.value, 0) as value
      from asked a
      cross join lateral (
        select r.n, nullif(r.billing_entity_id, p_organization_id) as user_id, r.events, r.value
        from billing.measure_slices(p_organization_id, v_bounds, jsonb_build_object('meter', a.meter_code) || a.groups) r
      ) as m
      left join lateral (
        select sum(t.events)::bigint as events, sum(t.value) as value
        from late t
        where t.n = m.n
          and t.meter_code = a.meter_code
          and t.user_id is not distinct from m.user_id
          and t.groups @> a.groups
      ) as l on true
      where exists (select from prices p where p.n = m.n and p.meter_code = a.meter_code and p.groups = a.groups)
    ),
    units as materialized (
      select d.n, d.meter_code, true as metered, d.groups, d.user_id, d.events, d.value
      from named d
      where d.events <> 0 or d.value <> 0
      union all
      select u.n, u.meter_code, u.metered, '{}', u.user_id, u.events - coalesce(d.events, 0), u.value - coalesce(d.value, 0)
      from used u
      left join (
        select a.n, a.meter_code, a.user_id, sum(a.events)::bigint as events, sum(a.value) as value from named a group by 1, 2, 3
      ) as d
        on u.metered and d.n = u.n and d.meter_code = u.meter_code and d.user_id is not distinct from u.user_id
      where d.meter_code is null or u.events <> d.events or u.value <> d.value
    ),
    -- What is no sum, over both payers.
    together as materialized (
      select p.price_key, sum(m.value) as value
      from billing.measure_slices(
        p_organization_id, v_bounds,
        jsonb_build_object('meter', (
          select coalesce(jsonb_agg(distinct p.meter_code), '[]')
          from prices p
          join metering.meters m on m.code = p.meter_code
          where m.aggregation in ('max', 'min', 'latest', 'unique')
        )),
        true, (select c.slices from charged c)
      ) m
      join prices p on p.n = m.n and p.meter_code = m.meter_code
      where v_handed_over_at < p_period_end
      group by 1
    ),
    priced as materialized (
      select p.price_key, u.meter_code, u.groups, u.user_id, sum(u.events)::bigint as events, sum(u.value) as value, p.terms, p.seconds
      from units u
      join prices p on u.metered and p.n = u.n and p.meter_code = u.meter_code and p.groups = u.groups
      group by p.price_key, u.meter_code, u.groups, u.user_id, p.terms, p.seconds
      union all
      -- A minimum is due without any usage.
      select p.price_key, p.meter_code, p.groups, y.user_id, 0, 0, p.terms, p.seconds
      from (select distinct q.price_key, q.meter_code, q.groups, q.terms, q.seconds from prices q where q.minimum_cents > 0) as p
      join metering.meters m on m.code = p.meter_code and (m.deleted_at is null or m.deleted_at > p_period_start)
      cross join payers y
      where not exists (
        select
        from units u
        join prices q on q.n = u.n and q.meter_code = u.meter_code and q.groups = u.groups
        where u.metered and q.price_key = p.price_key and u.user_id is not distinct from y.user_id
      )
    ),
    summed as (
      select
        x.*,
        metering.value_of_unit(m.aggregation, m.unit_size) as unit_value,
        m.description,
        m.unit,
        greatest(coalesce(t.value, sum(x.value) over (partition by x.price_key)), 0) as whole_value,
        lead(true) over (partition by x.price_key order by x.user_id nulls last) is null as is_last
      from priced x
      join metering.meters m on m.code = x.meter_code
      left join together t on t.price_key = x.price_key
    ),
    reached as (
      select s.*, case when s.is_last then s.whole_value else least(greatest(s.value, 0), s.whole_value) end as to_value
      from summed s
    ),
    begun as (
      select r.*, lag(r.to_value, 1, 0::numeric) over (partition by r.price_key order by r.user_id nulls last) as from_value
      from reached r
    ),
    rated as (
      select
        b.*, r.exact_cents, r.tiers,
        sum(r.exact_cents) over (partition by b.price_key) as whole_cents,
        coalesce((select y.seconds from shares y where y.price_key = b.price_key and y.user_id is not distinct from b.user_id), 0) as paid_seconds
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
          else d.paid_seconds * l.due_cents / d.seconds
        end as share_cents
      from rated d
      cross join lateral billing.within_limits(d.terms, d.whole_cents) as l (due_cents)
    ),
    carried as (
      select h.*, sum(h.share_cents) over (partition by h.price_key order by h.user_id nulls last) as sum_cents
      from shared h
    ),
    fees as (
      select
        y.user_id, l.name, p.terms, y.seconds,
        (p.terms ->> 'unit_amount_cents')::numeric as fee_cents,
        sum(y.seconds) over (partition by p.price_key order by y.user_id nulls last) as sum_seconds
      from (select distinct q.price_key, q.plan_code, q.terms from prices q where q.meter_code is null) as p
      join billing.plans l on l.code = p.plan_code
      join shares y on y.price_key = p.price_key and y.seconds > 0
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
    from (
      select a.user_id, a.meter_code, a.metered, a.groups, sum(a.events)::bigint as events, sum(a.value) as value
      from units a
      where not exists (select from prices p where a.metered and p.n = a.n and p.meter_code = a.meter_code and p.groups = a.groups)
      group by 1, 2, 3, 4
    ) as u
    left join metering.meters m on u.metered and m.code = u.meter_code;
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
    select d.belongs_to, p.slice_start, p.slice_end, p.meter_code, p.groups, p.terms, p.price_key
    from periods d
    join billing.billing_periods b on b.organization_id = p_organization_id and b.period_start = d.belongs_to
    cross join lateral billing.prices_of_period(
      p_organization_id, d.belongs_to, b.period_end, coalesce(d.plan_code, p_plan_code), coalesce(d.currency, p_currency),
      coalesce(d.rated_at, p_known_at)
    ) p
    where p.meter_code is not null
  ),
  units as (
    select
      l.is_earlier, l.meter_code, nullif(l.billing_entity_id, p_organization_id) as user_id, l.belongs_to, coalesce(p.groups, '{}') as groups,
      p.terms, p.price_key, sum(l.events)::bigint as events, sum(l.value) as value
    from late l
    left join lateral (
      select r.groups, r.terms, r.price_key
      from prices r
      where r.belongs_to = l.belongs_to
        and r.slice_start <= l.since
        and r.slice_end > l.since
        and r.meter_code = l.meter_code
        and l.groups @> r.groups
      order by r.groups = '{}'
      limit 1
    ) as p on true
    group by 1, 2, 3, 4, 5, 6, 7
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
          -- Those that kept no price are from before a meter could have two in a period.
          and (n.price is null or n.price ->> 'price_id' is not distinct from u.terms ->> 'price_id')
      ), 0) + coalesce((
        select sum(e.value)
        from units e
        where e.is_earlier
          and e.meter_code = u.meter_code
          and e.belongs_to = u.belongs_to
          and e.groups = u.groups
          and e.price_key is not distinct from u.price_key
      ), 0) as base_value,
      sum(u.value) over (partition by u.meter_code, u.belongs_to, u.groups, u.price_key order by u.user_id nulls last) as up_to_value
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
