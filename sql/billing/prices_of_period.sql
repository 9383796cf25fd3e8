-- The prices that a period is rated by, a row a slice of it (billing.plan_slices) in which one is in force. A price that was in force for a part
-- of the period only has that part of its included quantity, minimum and maximum, by the second; so have fees, where they are rated.
-- What a trial covers is rated 0: each meter that the plan has a price for costs nothing.
--
-- price_key tells prices of one meter apart, also those that two plans have for it, and the fee that Stripe charges from the one that it does
-- not: where our invoice counts, that is left out, and elsewhere it is marked (by_stripe). terms: as billing.rate() takes them, with in_force when that
-- is not all of the period: [{"from", "until"}, …]. seconds: for how long the price is in force.
create or replace function billing.prices_of_period(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_plan_code text, p_currency text, p_known_at timestamptz
)
returns table (
  n integer, slice_start timestamptz, slice_end timestamptz, price_key text, meter_code text, dimension text, minimum_cents numeric, plan_code text,
  groups jsonb, terms jsonb, seconds numeric
)
language sql
stable
set search_path = ''
as $$
  with slices as materialized (
    select s.* from billing.plan_slices(p_organization_id, p_period_start, p_period_end, p_plan_code) s
  ),
  prices as (
    select
      s.n, s.slice_start, s.slice_end, p.id || case when f.by_stripe then ' by stripe' else '' end as price_key, p.meter_code, p.dimension,
      p.minimum_cents, p.plan_code, billing.groups_of(p) as groups,
      billing.terms_of(p) || case when f.by_stripe then '{"by_stripe": true}'::jsonb else '{}' end as terms
    from slices s
    cross join lateral billing.prices_in_force(s.plan_code, p_currency, p_period_start, p_known_at) p
    cross join lateral (select p.meter_code is null and s.fee_by_stripe as by_stripe) as f
    where not s.is_trial
      and not (f.by_stripe and billing.invoice_mode_of(p_organization_id, p_period_start) = 'local')
    union all
    select
      s.n, s.slice_start, s.slice_end, 'trial of ' || s.plan_code || ' ' || m.meter_code, m.meter_code, null, null, s.plan_code, '{}',
      jsonb_build_object('plan', s.plan_code, 'model', 'per_unit', 'unit_amount_cents', 0, 'trial', true)
    from slices s
    cross join lateral (
      select distinct p.meter_code
      from billing.prices_in_force(s.plan_code, p_currency, p_period_start, p_known_at) p
      where p.meter_code is not null
    ) as m
    where s.is_trial
  ),
  timed as (
    select p.*, sum(extract(epoch from p.slice_end - p.slice_start)) over (partition by p.price_key) as seconds from prices p
  )
  select
    t.n, t.slice_start, t.slice_end, t.price_key, t.meter_code, t.dimension,
    billing.prorated(t.minimum_cents, t.seconds, w.seconds), t.plan_code, t.groups,
    case
      when t.seconds = w.seconds then t.terms
      else t.terms
        || jsonb_strip_nulls(jsonb_build_object(
          'included_quantity', billing.prorated((t.terms ->> 'included_quantity')::numeric, t.seconds, w.seconds),
          'minimum_cents', billing.prorated((t.terms ->> 'minimum_cents')::numeric, t.seconds, w.seconds),
          'maximum_cents', billing.prorated((t.terms ->> 'maximum_cents')::numeric, t.seconds, w.seconds),
          'in_force', (
            select jsonb_agg(
              jsonb_build_object('from', metering.time_text(lower(r.at)), 'until', metering.time_text(upper(r.at))) order by lower(r.at)
            )
            from (
              select unnest(range_agg(tstzrange(o.slice_start, o.slice_end))) as at from prices o where o.price_key = t.price_key
            ) as r
          )
        ))
    end,
    t.seconds
  from timed t
  cross join (select extract(epoch from p_period_end - p_period_start) as seconds) as w
$$;

-- A part of an amount or quantity, by time, to six places: as it is printed, and reckoned with.
create or replace function billing.prorated(p_whole numeric, p_seconds numeric, p_of_seconds numeric)
returns numeric
language sql
immutable
parallel safe
as $$
  select case when p_seconds = p_of_seconds then p_whole else pg_catalog.trim_scale(pg_catalog.round(p_whole * p_seconds / p_of_seconds, 6)) end
$$;

grant execute on function billing.prices_of_period(uuid, timestamptz, timestamptz, text, text, timestamptz),
  billing.prorated(numeric, numeric, numeric) to goldleaves_kernel;
