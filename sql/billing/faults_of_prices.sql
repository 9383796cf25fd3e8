-- What can be wrong with a price that is to be made: by itself, and beside those that there are. billing.guard_prices() asks.

-- What can be reckoned with exactly, and is no slip of the keyboard. Null is for who asks to judge.
create or replace function billing.is_amount(p_number numeric)
returns boolean
language sql
immutable
parallel safe
set search_path = ''
as $$ select p_number >= 0 and p_number < 1e15 and scale(trim_scale(p_number)) <= 12 $$;

-- Tiers as they are kept, or what is wrong with them. Numbers may come as texts, so that no client rounds them.
create or replace function billing.read_tiers(p_tiers jsonb, out tiers jsonb, out problem text)
language plpgsql
immutable
set search_path = ''
as $$
declare
  v_tier jsonb;
  v_position integer;
  v_name text;
  v_count integer;
  v_up_to numeric;
  v_lower numeric := 0;
begin
  if jsonb_typeof(p_tiers) <> 'array' or jsonb_array_length(p_tiers) not between 1 and 100 then
    problem := 'tiers is a list of 1 to 100 tiers';
    return;
  end if;
  v_count := jsonb_array_length(p_tiers);
  tiers := '[]';
  for v_tier, v_position in
    select t.tier, t.position from jsonb_array_elements(p_tiers) with ordinality as t (tier, position) order by t.position
  loop
    if jsonb_typeof(v_tier) <> 'object' then
      problem := format('tier %s is no object', v_position);
      return;
    end if;
    select k.name into v_name
    from jsonb_object_keys(v_tier) as k (name)
    where k.name not in ('up_to', 'unit_amount_cents', 'flat_amount_cents')
    limit 1;
    if v_name is not null then
      problem := format('tier %s has %s, and a tier has up_to, unit_amount_cents and flat_amount_cents', v_position, quote_literal(left(v_name, 80)));
      return;
    end if;
    select v.key into v_name
    from jsonb_each(v_tier) as v
    where jsonb_typeof(v.value) <> 'null'
      and (jsonb_typeof(v.value) not in ('number', 'string') or billing.is_amount(metering.number_in(v.value #>> '{}')) is not true)
    limit 1;
    if v_name is not null then
      problem := format('%s of tier %s is no number from 0 to 1e15 with at most 12 decimals', v_name, v_position);
      return;
    end if;

    v_up_to := (v_tier ->> 'up_to')::numeric;
    problem := case
      when v_tier ->> 'unit_amount_cents' is null and v_tier ->> 'flat_amount_cents' is null then format('tier %s has no amount', v_position)
      when v_position < v_count and v_up_to is null then format('tier %s has no up_to, and only the last one reaches without end', v_position)
      when v_position = v_count and v_up_to is not null then 'the last tier reaches without end: its up_to is null'
      when v_up_to <= v_lower then format('tier %s ends at %s, which is not above %s', v_position, v_up_to, v_lower)
    end;
    if problem is not null then
      return;
    end if;
    tiers := tiers || jsonb_build_object(
      'up_to', trim_scale(v_up_to),
      'unit_amount_cents', trim_scale(coalesce((v_tier ->> 'unit_amount_cents')::numeric, 0)),
      'flat_amount_cents', trim_scale(coalesce((v_tier ->> 'flat_amount_cents')::numeric, 0))
    );
    v_lower := v_up_to;
  end loop;
end;
$$;

-- The first thing that is wrong with a price by itself, as (problem, hint); null when nothing is. One sentence a rule, before constraints of
-- the table speak in their own way.
create or replace function billing.fault_of_price(p_price billing.prices, out problem text, out hint text)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_is_withdrawal boolean := p_price.model = 'none';
  v_in_tiers boolean := p_price.model in ('graduated', 'volume');
  v_meter metering.meters;
  v_name text;
begin
  select * into v_meter from metering.meters m where m.code = p_price.meter_code;
  select n.name into v_name
  from (values
    ('unit_amount_cents', p_price.unit_amount_cents), ('package_size', p_price.package_size), ('included_quantity', p_price.included_quantity),
    ('minimum_cents', p_price.minimum_cents), ('maximum_cents', p_price.maximum_cents)
  ) as n (name, number)
  where not billing.is_amount(n.number)
  limit 1;

  if p_price.meter_code is null and p_price.plan_code is null then
    problem := 'a price is for a meter, or for a plan, or for a meter in a plan';
    hint := 'GET /meters and GET /plans list what there is.';
  elsif p_price.meter_code is not null and v_meter.code is null then
    problem := format('there is no meter %s', left(p_price.meter_code, 80));
    hint := 'GET /meters lists them; create_meter defines one.';
  elsif v_meter.deleted_at is not null and not v_is_withdrawal then
    problem := format('the meter %s was deleted', v_meter.code);
  elsif p_price.plan_code is not null and not exists (select from billing.plans l where l.code = p_price.plan_code) then
    problem := format('there is no plan %s', left(p_price.plan_code, 80));
    hint := 'GET /plans lists them; create_plan makes one.';
  elsif p_price.currency is null or not exists (select from billing.currencies c where c.code = p_price.currency) then
    problem := format('there is no currency %s', coalesce(left(p_price.currency, 80), 'null'));
    hint := 'It is an ISO 4217 code in lower case, such as usd: GET /currencies lists them.';
  elsif p_price.model is null or p_price.model not in ('flat', 'per_unit', 'package', 'graduated', 'volume', 'none') then
    problem := format('there is no model %s', coalesce(left(p_price.model, 80), 'null'));
    hint := 'It is flat, per_unit, package, graduated or volume; none withdraws a price.';
  elsif v_name is not null then
    problem := format('%s is a number from 0 to 1e15 with at most 12 decimals', v_name);
  elsif v_in_tiers and p_price.tiers is null then
    problem := format('a %s price needs tiers', p_price.model);
    hint := 'As in [{"up_to": 100, "unit_amount_cents": 2}, {"up_to": null, "unit_amount_cents": 1.5}].';
  elsif v_in_tiers and p_price.unit_amount_cents is not null then
    problem := format('a %s price has its amounts in tiers, and no unit_amount_cents', p_price.model);
  elsif not v_in_tiers and p_price.tiers is not null then
    problem := format('tiers are for graduated and volume prices, and this is %s', p_price.model);
  elsif p_price.model in ('flat', 'per_unit', 'package') and p_price.unit_amount_cents is null then
    problem := format('a %s price needs unit_amount_cents', p_price.model);
    hint := 'In minor units of the currency: 25 are 0.25 usd, and 25 jpy.';
  elsif p_price.model = 'package' and coalesce(p_price.package_size, 0) = 0 then
    problem := 'a package price needs package_size: how many units one package has';
  elsif p_price.model <> 'package' and p_price.package_size is not null then
    problem := format('package_size is for package prices, and this is %s', p_price.model);
  elsif v_is_withdrawal and (
    num_nonnulls(p_price.unit_amount_cents, p_price.minimum_cents, p_price.maximum_cents) > 0 or p_price.included_quantity > 0
  ) then
    problem := 'model none withdraws a price, and has no amounts itself';
    hint := 'To let something cost nothing, make it a price of 0.';
  elsif p_price.minimum_cents > p_price.maximum_cents then
    problem := 'minimum_cents is above maximum_cents';
  elsif p_price.meter_code is null and (
    p_price.model not in ('flat', 'none') or p_price.dimension is not null or p_price.included_quantity > 0
    or num_nonnulls(p_price.minimum_cents, p_price.maximum_cents) > 0
  ) then
    problem := 'a price without a meter is the fee of a plan: of model flat, with unit_amount_cents and nothing else';
  elsif (p_price.dimension is null) <> (p_price.dimension_value is null) then
    problem := 'a price for a group names both, a dimension and a dimension_value';
  elsif length(p_price.dimension_value) not between 1 and 200 then
    problem := 'dimension_value has 1 to 200 characters';
  elsif p_price.dimension is not null and not v_is_withdrawal and v_meter.aggregation not in ('sum', 'count', 'weighted_sum') then
    problem := format('%s is a %s, whose groups do not add up: it has one price for all', v_meter.code, v_meter.aggregation);
  -- In a filter of usage these are no dimensions.
  elsif p_price.dimension in ('meter', 'billing_entity_id', 'billing_entity_type') and not v_is_withdrawal then
    problem := format('%s is no dimension that a price can be for', p_price.dimension);
    hint := 'Send it under another name in events, and keep that one with change_meter.';
  elsif p_price.effective_from not between '2000-01-01 00:00Z' and p_price.created_at + interval '10 years' then
    problem := format('effective_from %s lies before 2000 or more than ten years ahead', p_price.effective_from);
  elsif p_price.dimension is not null and not v_is_withdrawal and p_price.dimension <> all (v_meter.group_by) then
    problem := format('%s keeps no dimension %s', v_meter.code, left(p_price.dimension, 80));
    hint := case
      when v_meter.group_by = '{}' then 'It keeps none: change_meter with group_by lets it keep some.'
      else format('It keeps %s. change_meter with group_by lets it keep others.', array_to_string(v_meter.group_by, ', '))
    end;
  end if;
end;
$$;

-- What a price is for, in words.
create or replace function billing.subject_of(p_price billing.prices)
returns text
language sql
immutable
set search_path = ''
as $$
  select coalesce(p_price.meter_code || coalesce(' in the plan ' || p_price.plan_code, ''), 'the plan ' || p_price.plan_code)
    || coalesce(' for ' || p_price.dimension || ' ' || p_price.dimension_value, '')
$$;

-- Prices with the time in which each is the last one. One that was put right before it began has none.
create or replace function billing.price_spans(p_meter_code text, p_currency text)
returns table (plan_code text, dimension text, dimension_value text, model text, effective_from timestamptz, superseded_at timestamptz)
language sql
stable
set search_path = ''
as $$
  select
    r.plan_code, r.dimension, r.dimension_value, r.model, r.effective_from,
    lead(r.effective_from, 1, 'infinity') over (
      partition by r.plan_code, r.dimension, r.dimension_value order by r.effective_from, r.created_at
    )
  from billing.prices r
  where r.meter_code is not distinct from p_meter_code
    and r.currency = p_currency
$$;

-- Which price a new one takes the place of; null when there is none.
create or replace function billing.price_before(p_price billing.prices)
returns billing.prices
language sql
stable
set search_path = ''
as $$
  select r
  from billing.prices r
  where (r.meter_code, r.plan_code, r.currency, r.dimension, r.dimension_value)
      is not distinct from (p_price.meter_code, p_price.plan_code, p_price.currency, p_price.dimension, p_price.dimension_value)
    and r.effective_from <= p_price.effective_from
  order by r.effective_from desc, r.created_at desc
  limit 1
$$;

-- What is wrong with a price beside the others, at p_now. p_before: billing.price_before(). A price counts from its effective_from until the
-- next one of its (meter, plan, currency, group) does; a period takes those that count when it begins. So one from a moment ahead changes
-- no period that has begun, and one that reaches back changes those that are not finalized: an invoice keeps the prices that were
-- made before it (rated_at). Back reaches only what takes no price away: whoever has used something by a price pays that price.
create or replace function billing.fault_beside_others(
  p_price billing.prices, p_before billing.prices, p_now timestamptz, out problem text, out hint text
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_until timestamptz;
  v_is_its_own boolean;
  v_dimension text;
begin
  if p_price.model = 'none' and coalesce(p_before.model, 'none') = 'none' then
    problem := billing.subject_of(p_price) || ' has no price of its own that could be withdrawn';
    hint := 'To let something cost nothing, make it a price of 0.';
    return;
  end if;

  select coalesce(min(s.effective_from), 'infinity') into v_until
  from billing.price_spans(p_price.meter_code, p_price.currency) s
  where (s.plan_code, s.dimension, s.dimension_value) is not distinct from (p_price.plan_code, p_price.dimension, p_price.dimension_value)
    and s.effective_from > p_price.effective_from;

  select bool_or(
    (s.plan_code, s.dimension, s.dimension_value) is not distinct from (p_price.plan_code, p_price.dimension, p_price.dimension_value)
  ) into v_is_its_own
  from billing.price_spans(p_price.meter_code, p_price.currency) s
  where s.model <> 'none'
    and s.effective_from < least(v_until, p_now)
    and s.superseded_at > p_price.effective_from
    and p_price.effective_from < p_now
    and (
      (s.plan_code, s.dimension, s.dimension_value) is not distinct from (p_price.plan_code, p_price.dimension, p_price.dimension_value)
      -- The group had the price for all groups, or the plan that of everybody.
      or p_price.model <> 'none' and s.plan_code is not distinct from p_price.plan_code and s.dimension is null
      or p_price.model <> 'none' and s.plan_code is null and p_price.plan_code is not null
    );
  if v_is_its_own then
    problem := billing.subject_of(p_price) || ' has a price since before: another one counts for the periods that begin from now on at the earliest';
    hint := 'Leave effective_from out, or send a moment ahead.';
    return;
  elsif not v_is_its_own then
    problem := billing.subject_of(p_price) || ' had the price for all until now: one of its own counts for the periods that begin from now on at the earliest';
    hint := 'Leave effective_from out, or send a moment ahead. Prices of groups and plans that are to reach back are made before the price for all.';
    return;
  end if;

  if p_price.dimension is not null and p_price.model <> 'none' then
    select s.dimension into v_dimension
    from billing.price_spans(p_price.meter_code, p_price.currency) s
    where s.plan_code is not distinct from p_price.plan_code
      and s.dimension <> p_price.dimension
      and s.model <> 'none'
      and s.effective_from < v_until
      and s.superseded_at > p_price.effective_from
    limit 1;
    if found then
      problem := format('other prices of %s are for values of %s, and what has both would have two prices', p_price.meter_code, v_dimension);
      hint := format('Withdraw those first, with model none, or price %s alone.', v_dimension);
    end if;
  end if;
end;
$$;

grant execute on function billing.is_amount(numeric), billing.read_tiers(jsonb), billing.fault_of_price(billing.prices),
  billing.subject_of(billing.prices), billing.price_spans(text, text), billing.price_before(billing.prices),
  billing.fault_beside_others(billing.prices, billing.prices, timestamptz) to goldleaves_kernel;
