-- What Stripe takes for the smallest unit of a currency is not always what we do: ISO has two decimals for the ariary and none for the krona of
-- Iceland and the Ugandan shilling. Source: docs.stripe.com/currencies.

create or replace function stripe.decimals_at_stripe(p_currency text)
returns integer
language sql
immutable
parallel safe
as $$
  select case
    when p_currency in ('bif', 'clp', 'djf', 'gnf', 'jpy', 'kmf', 'krw', 'mga', 'pyg', 'rwf', 'vnd', 'vuv', 'xaf', 'xof', 'xpf') then 0
    when p_currency in ('bhd', 'jod', 'kwd', 'omr', 'tnd') then 3
    else 2
  end
$$;

-- What one of our minor units is of Stripe's.
create or replace function stripe.units_at_stripe(p_currency text)
returns numeric
language sql
stable
set search_path = ''
as $$
  select 10::numeric ^ (
    stripe.decimals_at_stripe(p_currency) - coalesce((select c.minor_units from billing.currencies c where c.code = p_currency), 2)
  )
$$;

-- Of currencies with three decimals Stripe wants whole tens.
create or replace function stripe.amount_at_stripe(p_amount_cents numeric, p_currency text)
returns numeric
language sql
stable
set search_path = ''
as $$
  select round(
    p_amount_cents * stripe.units_at_stripe(p_currency), case when stripe.decimals_at_stripe(p_currency) = 3 then -1 else 0 end
  )
$$;

-- The facts of an object with amounts in our minor units. p_currency: null is the object's own.
create or replace function stripe.with_amounts_here(p_facts jsonb, p_currency text)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select case
    when stripe.units_at_stripe(p_currency) = 1 then p_facts
    else p_facts || coalesce(
      (
        select jsonb_object_agg(m.key, round((m.value #>> '{}')::numeric / stripe.units_at_stripe(p_currency)))
        from jsonb_each(p_facts) m
        where m.key in ('total', 'amount', 'amount_due', 'amount_paid', 'amount_remaining', 'amount_refunded')
          and jsonb_typeof(m.value) = 'number'
      ),
      '{}'
    )
  end
$$;

grant execute on function stripe.decimals_at_stripe(text), stripe.units_at_stripe(text), stripe.amount_at_stripe(numeric, text),
  stripe.with_amounts_here(jsonb, text) to goldleaves_kernel;
