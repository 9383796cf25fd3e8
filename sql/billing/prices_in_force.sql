-- Which prices count for a period that begins at p_at: of each (meter, plan, group) the last one that was in force by then, and of two from
-- the same moment on the one that was made last. Where a plan has
-- prices of its own for a meter, those for everybody do not count. p_known_at: prices made later are left out, so that what was rated
-- once is rated alike for ever. Without `set search_path`, so that it is inlined: the views of events ask it for each event.
create or replace function billing.prices_in_force(
  p_plan_code text, p_currency text, p_at timestamptz, p_known_at timestamptz default 'infinity'
)
returns setof billing.prices
language sql
stable
as $$
  with latest as (
    select distinct on (r.meter_code, r.plan_code, r.dimension, r.dimension_value) r.*
    from billing.prices r
    where r.currency = p_currency
      and r.effective_from <= p_at
      and r.created_at <= p_known_at
      and (r.plan_code is null or r.plan_code = p_plan_code)
    order by r.meter_code, r.plan_code, r.dimension, r.dimension_value, r.effective_from desc, r.created_at desc
  )
  select l.*
  from latest l
  where l.model <> 'none'
    and (
      l.plan_code is not null
      or not exists (select from latest o where o.meter_code = l.meter_code and o.plan_code is not null and o.model <> 'none')
    )
$$;

-- A price as invoices keep it, and as billing.rate() takes it. Inlined, like the next one: they are asked of each price there is.
create or replace function billing.terms_of(p_price billing.prices)
returns jsonb
language sql
stable
as $$
  select pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'price_id', p_price.id,
    'plan', p_price.plan_code,
    'model', p_price.model,
    'unit_amount_cents', p_price.unit_amount_cents,
    'package_size', p_price.package_size,
    'included_quantity', p_price.included_quantity,
    'minimum_cents', p_price.minimum_cents,
    'maximum_cents', p_price.maximum_cents
  ))
    || case when p_price.tiers is null then '{}' else pg_catalog.jsonb_build_object('tiers', p_price.tiers) end
$$;

-- Which group a price is for: {"model": "large"}, as groups keep the value; {}: all that no other price of the meter is for.
create or replace function billing.groups_of(p_price billing.prices)
returns jsonb
language sql
stable
as $$
  select case
    when p_price.dimension is null then '{}'
    else pg_catalog.jsonb_build_object(p_price.dimension, metering.kept_value(p_price.dimension_value))
  end
$$;

-- What a unit costs, where every unit costs the same whatever else was used: then parts of a quantity add up to what all of it costs.
create or replace function billing.unit_amount_of(p_terms jsonb)
returns numeric
language sql
immutable
set search_path = ''
as $$
  select (p_terms ->> 'unit_amount_cents')::numeric
  where p_terms ->> 'model' = 'per_unit'
    and coalesce((p_terms ->> 'included_quantity')::numeric, 0) = 0
    and not p_terms ?| array['minimum_cents', 'maximum_cents']
$$;

grant execute on function billing.prices_in_force(text, text, timestamptz, timestamptz), billing.terms_of(billing.prices),
  billing.groups_of(billing.prices), billing.unit_amount_of(jsonb) to goldleaves_kernel;
