-- What units of a meter cost, by one price. Nothing is rounded here, but to 60 places, which takes away what a quotient without an end leaves:
-- a third of a unit at 1.5 is half a cent, and not 0.4999….
--
-- p_terms: as billing.terms_of() makes them. Rated are the units after the p_from-th up to the p_to-th of p_whole in the period: a
-- line that two payers share is rated for the first one from 0, and for the next one from where that ended. Quantities may be fractions.
--   per_unit   each unit costs the same.
--   package    each package that was begun costs the same.
--   graduated  each unit costs what the tier says in which it lies; a tier's flat amount is due with its first unit.
--   volume     all units cost what the tier says in which the whole quantity lies.
--   flat       one amount, due with the first unit.
-- The included quantity are the first units, which cost nothing; they fill tiers like others. A tier reaches up to and with its up_to.
-- tiers: how the amount came about, a part a row: from, to, quantity, unit_amount_cents, flat_amount_cents, amount_cents, and included.
create or replace function billing.rate(
  p_terms jsonb, p_from numeric, p_to numeric, p_whole numeric, out exact_cents numeric, out tiers jsonb
)
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
declare
  v_included numeric := coalesce((p_terms ->> 'included_quantity')::numeric, 0);
  v_unit_amount numeric := (p_terms ->> 'unit_amount_cents')::numeric;
  v_size numeric := (p_terms ->> 'package_size')::numeric;
  v_from numeric := greatest(p_from, v_included);
  v_to numeric := greatest(p_to, v_included);
  v_tier jsonb;
  v_lower numeric := 0;
  v_upper numeric;
  v_begin numeric;
  v_end numeric;
  v_flat numeric;
  v_amount numeric;
  v_packages numeric;
begin
  exact_cents := 0;
  tiers := '[]';
  if p_to > p_from and p_from < v_included then
    tiers := jsonb_build_array(jsonb_build_object(
      'from', billing.shown(p_from), 'to', billing.shown(least(p_to, v_included)), 'quantity', billing.shown(least(p_to, v_included) - p_from),
      'unit_amount_cents', 0, 'amount_cents', 0, 'included', true
    ));
  end if;
  if v_to <= v_from then
    return;
  end if;

  case p_terms ->> 'model'
    when 'flat' then
      -- Due with the first unit, which is this payer's when nothing came before.
      exact_cents := case when v_from = v_included then v_unit_amount else 0 end;
      tiers := tiers || jsonb_build_object(
        'from', billing.shown(v_from), 'to', billing.shown(v_to), 'quantity', billing.shown(v_to - v_from), 'flat_amount_cents', exact_cents,
        'amount_cents', exact_cents
      );
    when 'per_unit' then
      exact_cents := (v_to - v_from) * v_unit_amount;
      tiers := tiers || jsonb_build_object(
        'from', billing.shown(v_from), 'to', billing.shown(v_to), 'quantity', billing.shown(v_to - v_from), 'unit_amount_cents', v_unit_amount,
        'amount_cents', billing.shown(exact_cents)
      );
    when 'package' then
      v_packages := billing.packages_in(v_to - v_included, v_size) - billing.packages_in(v_from - v_included, v_size);
      exact_cents := v_packages * v_unit_amount;
      tiers := tiers || jsonb_build_object(
        'from', billing.shown(v_from), 'to', billing.shown(v_to), 'quantity', billing.shown(v_to - v_from), 'packages', v_packages,
        'package_size', v_size, 'unit_amount_cents', v_unit_amount, 'amount_cents', billing.shown(exact_cents)
      );
    else
      for v_tier in select t from jsonb_array_elements(p_terms -> 'tiers') with ordinality as t (t, n) order by n loop
        v_upper := coalesce((v_tier ->> 'up_to')::numeric, 'infinity');
        if p_terms ->> 'model' = 'volume' then
          -- The one tier in which the whole lies has everything.
          v_begin := case when p_whole > v_lower and p_whole <= v_upper then v_from end;
          v_end := v_to;
        else
          v_begin := greatest(v_from, v_lower);
          v_end := least(v_to, v_upper);
        end if;
        if v_end > v_begin then
          v_flat := case
            when v_begin = greatest(v_included, case p_terms ->> 'model' when 'graduated' then v_lower else 0 end)
              then coalesce((v_tier ->> 'flat_amount_cents')::numeric, 0)
            else 0
          end;
          v_amount := (v_end - v_begin) * (v_tier ->> 'unit_amount_cents')::numeric + v_flat;
          exact_cents := exact_cents + v_amount;
          tiers := tiers || jsonb_build_object(
            'from', billing.shown(v_begin), 'to', billing.shown(v_end), 'quantity', billing.shown(v_end - v_begin),
            'unit_amount_cents', v_tier -> 'unit_amount_cents', 'flat_amount_cents', v_flat, 'amount_cents', billing.shown(v_amount)
          );
        end if;
        v_lower := v_upper;
      end loop;
  end case;
  exact_cents := trim_scale(round(exact_cents, 60));
end;
$$;

-- A value in units. What has no end has 80 places, more than any price and quantity have together: what comes of it is rounded to 60, and
-- then to what it would have been exactly. Inlined, like the next one.
create or replace function billing.units_of(p_value numeric, p_unit_value numeric)
returns numeric
language sql
immutable
parallel safe
as $$ select pg_catalog.round(p_value, 80) / p_unit_value $$;

-- As documents have it: where it has an end, all of it.
create or replace function billing.shown(p_number numeric)
returns numeric
language sql
immutable
parallel safe
as $$ select pg_catalog.trim_scale(pg_catalog.round(p_number, 30)) $$;

-- How many packages were begun. Not by ceil(a / b): what a division leaves out can be all that the last one has.
create or replace function billing.packages_in(p_quantity numeric, p_size numeric)
returns numeric
language sql
immutable
parallel safe
set search_path = ''
as $$ select div(p_quantity, p_size) + case when mod(p_quantity, p_size) > 0 then 1 else 0 end $$;

-- The same within the minimum and maximum of the price. Inlined.
create or replace function billing.within_limits(p_terms jsonb, p_exact_cents numeric)
returns numeric
language sql
immutable
parallel safe
as $$
  select least(
    greatest(p_exact_cents, (p_terms ->> 'minimum_cents')::numeric), (p_terms ->> 'maximum_cents')::numeric
  )
$$;

-- What a whole quantity costs, in whole minor units: rounded once, half away from zero.
create or replace function billing.amount_of(p_terms jsonb, p_quantity numeric)
returns numeric
language sql
immutable
parallel safe
set search_path = ''
as $$
  select round(billing.within_limits(p_terms, r.exact_cents))
  from billing.rate(p_terms, 0, greatest(p_quantity, 0), greatest(p_quantity, 0)) r
$$;

grant execute on function billing.rate(jsonb, numeric, numeric, numeric), billing.units_of(numeric, numeric), billing.shown(numeric),
  billing.packages_in(numeric, numeric),
  billing.within_limits(jsonb, numeric), billing.amount_of(jsonb, numeric) to goldleaves_kernel;
