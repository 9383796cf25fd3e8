-- What the current organization has used in a period, and what that costs. Reads only, for everybody who may read usage.
create or replace function billing.usage_summary(p_period_start date, p_group_by text[] default '{}', p_filter jsonb default '{}')
returns table (
  meter text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric, groups jsonb
)
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_period record;
  v_filter jsonb;
  v_group_by text[];
begin
  perform tenancy.require_organization();
  perform tenancy.require_role_in('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read');
  select * into v_period from billing.period_from_date(tenancy.current_org(), p_period_start);
  v_filter := metering.checked_filter(p_filter);
  v_group_by := metering.checked_group_by(p_group_by, v_filter);

  if v_group_by <> '{}' or v_filter <> '{}' then
    perform metering.require_known_meters(tenancy.current_org(), array[v_period.period_start, v_period.period_end], v_filter);
    return query
      select *
      from billing.usage_by_group(
        tenancy.current_org(), v_period.period_start, v_period.period_end, v_period.status is not distinct from 'finalized', v_group_by, v_filter
      );
    return;
  end if;

  if v_period.status is distinct from 'finalized' then
    return query
      select r.meter_code, r.unit, r.events, r.quantity, r.unit_amount_cents, r.amount_cents, '{}'::jsonb
      from billing.rate_meters(tenancy.current_org(), v_period.period_start, v_period.period_end) r;
    return;
  end if;

  -- Of a finalized period its invoices are the answer, whatever became of prices since; beside them, what was not billed: also of a meter of
  -- which only some groups have a price.
  return query
    with rated as materialized (
      select r.* from billing.rate_meters(tenancy.current_org(), v_period.period_start, v_period.period_end) r
    ),
    lines as materialized (
      select
        l.meter_code, l.unit, sum(l.events)::bigint as events, sum(l.quantity) as quantity,
        -- Where every unit costs the same.
        case when count(*) = count(c.unit_amount_cents) and count(distinct c.unit_amount_cents) = 1 then min(c.unit_amount_cents) end
          as unit_amount_cents,
        sum(l.amount_cents) as amount_cents,
        bool_and(l.groups <> '{}') as in_groups
      from billing.invoices i
      join billing.invoice_lines l on l.organization_id = i.organization_id and l.invoice_id = i.id
      -- Lines from before they kept their price are all of one amount a unit.
      cross join lateral (
        select case when l.price is null then l.unit_amount_cents else billing.unit_amount_of(l.price) end as unit_amount_cents
      ) as c
      where i.organization_id = tenancy.current_org()
        and i.period_start = v_period.period_start
        and l.kind in ('usage', 'adjustment')
      group by l.meter_code, l.unit
    )
    select s.*
    from (
      select
        l.meter_code, l.unit,
        case when r.quantity > l.quantity then r.events else l.events end,
        greatest(l.quantity, r.quantity),
        case when r.quantity > l.quantity then null else l.unit_amount_cents end,
        l.amount_cents, '{}'::jsonb
      from lines l
      left join rated r on l.in_groups and r.meter_code = l.meter_code and r.unit is not null
      union all
      select r.meter_code, r.unit, r.events, r.quantity, null, 0, '{}'::jsonb
      from rated r
      where r.unit is null
        or not exists (select from lines l where l.meter_code = r.meter_code)
    ) as s
    order by s.unit is null, s.meter_code;
end;
$$;

-- A part of a period: its amounts are not rounded, so that parts add up. What has a price of its own costs that, as it is rated; of what has
-- no price nothing is due. Where units of one price cost differently, a part has its share, by quantity, of what they cost together.
-- Where a meter has several prices, one after the other, as the plan changes, each has the usage of its time: but of meters that do not add
-- up, and of those with late usage, whose prices were in force at another time, a part has its share of all.
-- Of a finalized period by its invoices. Of what two pay for, who the filter names has what is on their invoice.
create or replace function billing.usage_by_group(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_is_finalized boolean, p_group_by text[], p_filter jsonb
)
returns table (
  meter text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric, groups jsonb
)
language sql
stable
set search_path = ''
as $$
  with charged as materialized (
    select
      l.kind, l.meter_code, l.groups, l.quantity, l.amount_cents, l.price -> 'in_force' as in_force,
      case when l.price is null then l.unit_amount_cents else billing.unit_amount_of(l.price) end as unit_amount_cents
    from billing.invoices i
    join billing.invoice_lines l on l.organization_id = i.organization_id and l.invoice_id = i.id
    where p_is_finalized
      and i.organization_id = p_organization_id
      and i.period_start = p_period_start
      and l.kind in ('usage', 'adjustment')
      and billing.payer_passes(p_filter, p_organization_id, i.payer_user_id)
    union all
    select r.kind, r.meter_code, r.groups, r.quantity, r.amount_cents, r.terms -> 'in_force', billing.unit_amount_of(r.terms)
    from billing.rate_period(p_organization_id, p_period_start, p_period_end) r
    where not p_is_finalized
      and r.kind in ('usage', 'adjustment')
      and billing.payer_passes(p_filter, p_organization_id, r.payer_user_id)
  ),
  cut as materialized (
    select c.meter_code
    from charged c
    join metering.meters m on m.code = c.meter_code
    where m.aggregation in ('sum', 'count', 'weighted_sum')
    group by 1
    having bool_or(c.in_force is not null) and bool_and(c.kind = 'usage')
  ),
  charges as materialized (
    select
      row_number() over (order by c.meter_code, c.groups, c.in_force) as id, c.meter_code, c.groups, c.in_force,
      sum(c.quantity) as quantity, sum(c.amount_cents) as amount_cents,
      case when count(*) = count(c.unit_amount_cents) and count(distinct c.unit_amount_cents) = 1 then min(c.unit_amount_cents) end
        as unit_amount_cents
    from (
      select
        d.meter_code, d.groups, d.quantity, d.amount_cents, d.unit_amount_cents,
        case when d.meter_code in (select k.meter_code from cut k) then d.in_force end as in_force
      from charged d
    ) as c
    group by c.meter_code, c.groups, c.in_force
  ),
  bounds as materialized (
    select array_agg(b.at order by b.at) as bounds
    from (
      select p_period_start as at
      union
      select p_period_end
      union
      select e.at
      from charges c
      cross join lateral jsonb_array_elements(c.in_force) as f (span)
      cross join lateral (values ((f.span ->> 'from')::timestamptz), ((f.span ->> 'until')::timestamptz)) as e (at)
    ) as b
  ),
  -- since: of a meter that is cut, the part of the period; else null.
  used as materialized (
    select u.meter_code, u.metered, u.groups, null::timestamptz as since, sum(u.events)::bigint as events, sum(u.quantity) as quantity
    from metering.measure(
      p_organization_id, array[p_period_start, p_period_end], p_group_by, p_filter,
      -- As it is rated, unless it is asked what one payer has used.
      p_together => not p_filter ?| array['billing_entity_id', 'billing_entity_type']
    ) u
    where not (u.metered and u.meter_code in (select k.meter_code from cut k))
    group by 1, 2, 3
    union all
    select u.meter_code, true, u.groups, b.bounds[u.bucket], sum(u.events)::bigint, sum(u.quantity)
    from bounds b
    cross join (
      select jsonb_agg(k.meter_code) as codes
      from cut k
      where not p_filter ? 'meter' or k.meter_code = any (metering.filter_values(p_filter, 'meter'))
      having count(*) > 0
    ) as k
    cross join lateral metering.measure(
      p_organization_id, b.bounds, p_group_by, p_filter || jsonb_build_object('meter', k.codes),
      p_together => not p_filter ?| array['billing_entity_id', 'billing_entity_type']
    ) u
    where u.metered
    group by u.meter_code, u.groups, b.bounds[u.bucket]
  ),
  -- Of each part what has a price of its own: only values that the filter asks for, where it names that dimension.
  named as materialized (
    select
      c.meter_code, c.groups as price_groups, n.groups, case when c.is_cut then c.bounds[n.bucket] end as since,
      sum(n.events)::bigint as events, sum(n.quantity) as quantity
    from (
      select
        h.meter_code, h.groups, h.meter_code in (select k.meter_code from cut k) as is_cut,
        case when h.meter_code in (select k.meter_code from cut k) then b.bounds else array[p_period_start, p_period_end] end as bounds
      from (select distinct d.meter_code, d.groups from charges d) as h
      cross join bounds b
    ) as c
    cross join lateral jsonb_each_text(c.groups) as g (name, value)
    cross join lateral metering.measure(
      p_organization_id, c.bounds, p_group_by, p_filter || jsonb_build_object('meter', c.meter_code) || c.groups
    ) as n
    where c.meter_code in (select u.meter_code from used u where u.metered)
      and (not p_filter ? g.name or g.value = any (metering.filter_values(p_filter, g.name)))
      -- Another plan may have no price of its own for them.
      and (
        not c.is_cut
        or exists (
          select
          from charges d
          where d.meter_code = c.meter_code
            and d.groups = c.groups
            and billing.was_in_force(d.in_force, c.bounds[n.bucket])
        )
      )
    group by 1, 2, 3, 4
  ),
  parts as (
    select
      n.meter_code, true as metered, n.groups, n.price_groups, n.since, n.events, n.quantity
    from named n
    union all
    select
      u.meter_code, u.metered, u.groups, '{}', u.since, u.events - coalesce(n.events, 0), u.quantity - coalesce(n.quantity, 0)
    from used u
    left join (
      select a.meter_code, a.groups, a.since, sum(a.events)::bigint as events, sum(a.quantity) as quantity from named a group by 1, 2, 3
    ) as n
      on u.metered and n.meter_code = u.meter_code and n.groups = u.groups and n.since is not distinct from u.since
    where n.meter_code is null or u.events <> n.events or u.quantity <> n.quantity
  ),
  -- Which charge a part has a share of.
  matched as materialized (
    select p.*, c.id
    from parts p
    left join charges c
      on p.metered and c.meter_code = p.meter_code and c.groups = p.price_groups and billing.was_in_force(c.in_force, p.since)
  ),
  shared as (
    select
      p.meter_code, p.metered, p.groups, p.events, p.quantity, c.unit_amount_cents, c.amount_cents, c.quantity as charged_quantity,
      case when f.is_whole or metering.group_passes(f.dimensions, p.price_groups) then count(*) over (partition by p.id) end as parts,
      -- What there is of a charge altogether. Not always its quantity: the largest value of a trial is on a line of its own, and late usage of a
      -- time without a price on none. Where only some of a dimension is asked for, its quantity is all that is known.
      case when f.is_whole then sum(p.quantity) over (partition by p.id) else c.quantity end as whole_quantity
    from matched p
    cross join (select d.dimensions, d.dimensions = '{}' as is_whole from metering.dimension_filter(p_filter) as d (dimensions)) as f
    left join charges c on c.id = p.id
    union all
    -- What is due for nothing, as a minimum.
    select c.meter_code, true, metering.project(c.groups, p_group_by), 0, 0, c.unit_amount_cents, c.amount_cents, 0, 1, 0
    from charges c
    where c.amount_cents <> 0
      and c.id not in (select p.id from matched p where p.id is not null)
      and (c.quantity = 0 or metering.dimension_filter(p_filter) = '{}')
      and (not p_filter ? 'meter' or c.meter_code = any (metering.filter_values(p_filter, 'meter')))
      and metering.group_passes(metering.dimension_filter(p_filter), c.groups)
  )
  select
    p.meter_code, m.unit, sum(p.events)::bigint, sum(p.quantity),
    case when count(*) = count(p.unit_amount_cents) and count(distinct p.unit_amount_cents) = 1 then min(p.unit_amount_cents) end,
    trim_scale(coalesce(
      sum(case
        -- Both are quotients.
        when p.unit_amount_cents is not null and p.charged_quantity <> 0 and round(p.whole_quantity, 9) = round(p.charged_quantity, 9)
          then p.quantity * p.unit_amount_cents
        when p.whole_quantity <> 0 then p.amount_cents * p.quantity / p.whole_quantity
        else p.amount_cents / p.parts
      end),
      0
    )),
    p.groups
  from shared p
  left join metering.meters m on p.metered and m.code = p.meter_code
  group by p.meter_code, m.code, m.unit, p.groups
  order by m.code is null, p.meter_code, p.groups
$$;

-- p_in_force: of a price, [{"from", "until"}, …]; null: all the time.
create or replace function billing.was_in_force(p_in_force jsonb, p_at timestamptz)
returns boolean
language sql
stable
set search_path = ''
as $$
  select p_in_force is null or exists (
    select
    from jsonb_array_elements(p_in_force) as f (span)
    where (f.span ->> 'from')::timestamptz <= p_at
      and (f.span ->> 'until')::timestamptz > p_at
  )
$$;

-- Whether a filter of usage leaves room for what this one pays.
create or replace function billing.payer_passes(p_filter jsonb, p_organization_id uuid, p_payer_user_id uuid)
returns boolean
language sql
stable
set search_path = ''
as $$
  select
    (
      not p_filter ? 'billing_entity_type'
      or case when p_payer_user_id is null then 'organization' else 'user' end = any (metering.filter_values(p_filter, 'billing_entity_type'))
    )
    and (
      not p_filter ? 'billing_entity_id'
      or coalesce(p_payer_user_id, p_organization_id)::text = any (metering.filter_values(p_filter, 'billing_entity_id'))
    )
$$;

alter function billing.usage_summary(date, text[], jsonb) owner to goldleaves_kernel;
grant execute on function billing.usage_by_group(uuid, timestamptz, timestamptz, boolean, text[], jsonb),
  billing.was_in_force(jsonb, timestamptz), billing.payer_passes(jsonb, uuid, uuid) to goldleaves_kernel;
grant execute on function billing.usage_summary(date, text[], jsonb) to member, platform_admin;
