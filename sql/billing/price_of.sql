-- What a unit of a meter costs in a period that begins at p_at: the last price that was in force by then, null when there is none. Always
-- one row. A table function without `set search_path`, so that it is inlined where it is joined laterally.
create or replace function billing.price_of(p_meter_code text, p_currency text, p_at timestamptz)
returns table (unit_amount_cents numeric)
language sql
stable
parallel safe
as $$
  select (
    select r.unit_amount_cents
    from billing.prices r
    where r.meter_code = p_meter_code
      and r.currency = p_currency
      and r.effective_from <= p_at
    order by r.effective_from desc
    limit 1
  )
$$;

grant execute on function billing.price_of(text, text, timestamptz) to goldleaves_kernel;
