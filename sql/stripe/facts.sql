-- What we use of an object as Stripe sends it, in one shape for all versions of its API: since 2025-03-31 periods are on the items of a
-- subscription, and an invoice has its subscription in `parent`. What an object does not say is not in its facts, so that it takes nothing
-- away from what is known; null is what Stripe says is not there. Times are seconds since 1970, as Stripe has them.

-- References are ids, or whole objects where somebody has expanded them.
create or replace function stripe.id_in(p_value jsonb)
returns text
language sql
immutable
parallel safe
as $$ select case pg_catalog.jsonb_typeof(p_value) when 'string' then p_value #>> '{}' when 'object' then p_value ->> 'id' end $$;

create or replace function stripe.time_in(p_value jsonb)
returns timestamptz
language sql
immutable
parallel safe
as $$ select case pg_catalog.jsonb_typeof(p_value) when 'number' then pg_catalog.to_timestamp((p_value #>> '{}')::double precision) end $$;

-- The members of an object that have these names, and are there.
create or replace function stripe.picked(p_object jsonb, p_names text[])
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select coalesce(jsonb_object_agg(m.key, m.value), '{}')
  from jsonb_each(case jsonb_typeof(p_object) when 'object' then p_object else '{}' end) m
  where m.key = any (p_names)
$$;

-- Of a price, or of a plan, as prices were called before. amount says no more than whether something is charged: tiers have none of their own.
create or replace function stripe.price_facts(p_price jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select jsonb_build_object(
    'id', coalesce(p_price ->> 'id', ''),
    'plan', coalesce(p_price #>> '{metadata,plan}', p_price ->> 'lookup_key'),
    'amount', coalesce(
      (p_price ->> 'unit_amount_decimal')::numeric, (p_price ->> 'unit_amount')::numeric, (p_price ->> 'amount_decimal')::numeric,
      (p_price ->> 'amount')::numeric, case p_price ->> 'billing_scheme' when 'tiered' then 1 else 0 end
    )
  )
$$;

-- prices: what is charged whatever is used, so that one of them says the plan; those by usage are not among them.
create or replace function stripe.subscription_facts(p_object jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select
    stripe.picked(
      p_object,
      '{status,cancel_at,cancel_at_period_end,canceled_at,ended_at,trial_end,start_date,created,current_period_start,current_period_end}'
    )
    || case when p_object ? 'latest_invoice' then jsonb_build_object('latest_invoice', stripe.id_in(p_object -> 'latest_invoice')) else '{}' end
    || case
      when p_object ? 'default_payment_method' or p_object ? 'default_source'
        then jsonb_build_object(
          'has_payment_method',
          coalesce(stripe.id_in(p_object -> 'default_payment_method'), stripe.id_in(p_object -> 'default_source')) is not null
        )
      else '{}'
    end
    || case
      when p_object #> '{trial_settings,end_behavior}' ? 'missing_payment_method'
        then jsonb_build_object('without_payment_method', p_object #> '{trial_settings,end_behavior,missing_payment_method}')
      else '{}'
    end
    || coalesce(
      (
        select
          -- Absent on items before 2025-03-31: then they are on the subscription.
          jsonb_strip_nulls(jsonb_build_object(
            'current_period_start', min((i.item ->> 'current_period_start')::numeric),
            'current_period_end', max((i.item ->> 'current_period_end')::numeric)
          ))
          || jsonb_build_object(
            'prices',
            coalesce(
              jsonb_agg(
                stripe.price_facts(i.price)
                order by i.item ->> 'id', i.price ->> 'id'
              ) filter (where coalesce(i.price #>> '{recurring,usage_type}', i.price ->> 'usage_type', 'licensed') = 'licensed'),
              '[]'
            )
          )
        from (
          select e.item, case jsonb_typeof(e.item -> 'price') when 'object' then e.item -> 'price' else e.item -> 'plan' end as price
          from jsonb_array_elements(
            case jsonb_typeof(p_object #> '{items,data}') when 'array' then p_object #> '{items,data}' else '[]' end
          ) as e (item)
        ) as i
        having count(*) > 0
      ),
      -- Long ago a subscription of one plan had no items.
      case
        when jsonb_typeof(p_object -> 'plan') = 'object' and coalesce(p_object #>> '{plan,usage_type}', 'licensed') = 'licensed'
          then jsonb_build_object('prices', jsonb_build_array(stripe.price_facts(p_object -> 'plan')))
      end,
      '{}'
    )
$$;

-- The subscription that an invoice is for, in either version; null: none, or not said.
create or replace function stripe.subscription_of_invoice(p_object jsonb)
returns text
language sql
immutable
parallel safe
set search_path = ''
as $$
  select coalesce(
    stripe.id_in(p_object -> 'subscription'), stripe.id_in(p_object #> '{parent,subscription_details,subscription}'),
    stripe.id_in(p_object #> '{subscription_details,subscription}')
  )
$$;

create or replace function stripe.invoice_facts(p_object jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select
    stripe.picked(
      p_object,
      '{status,number,currency,total,amount_due,amount_paid,amount_remaining,attempt_count,period_start,period_end,hosted_invoice_url,created}'
    )
    || jsonb_strip_nulls(jsonb_build_object(
      'subscription', stripe.subscription_of_invoice(p_object),
      'charge', stripe.id_in(p_object -> 'charge'),
      'payment_intent',
      coalesce(
        stripe.id_in(p_object -> 'payment_intent'),
        (
          select min(stripe.id_in(p.payment #> '{payment,payment_intent}'))
          from jsonb_array_elements(
            case jsonb_typeof(p_object #> '{payments,data}') when 'array' then p_object #> '{payments,data}' else '[]' end
          ) as p (payment)
        )
      ),
      'paid_at', p_object #> '{status_transitions,paid_at}',
      -- An invoice of ours that somebody has charged through Stripe.
      'invoice_id', p_object #> '{metadata,goldleaves_invoice_id}'
    ))
$$;

-- Which payment an invoice was paid by: since 2025-03-31 the invoice itself no longer says.
create or replace function stripe.invoice_payment_facts(p_object jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'invoice', stripe.id_in(p_object -> 'invoice'),
    'payment_intent', stripe.id_in(p_object #> '{payment,payment_intent}'),
    'charge', stripe.id_in(p_object #> '{payment,charge}')
  ))
$$;

create or replace function stripe.charge_facts(p_object jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select
    stripe.picked(p_object, '{amount,amount_refunded,currency,created,reason,status}')
    || jsonb_strip_nulls(jsonb_build_object(
      'charge', coalesce(stripe.id_in(p_object -> 'charge'), case p_object ->> 'object' when 'charge' then p_object ->> 'id' end),
      'invoice', stripe.id_in(p_object -> 'invoice'),
      'payment_intent', stripe.id_in(p_object -> 'payment_intent')
    ))
$$;

create or replace function stripe.customer_facts(p_object jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select
    stripe.picked(p_object, '{email}')
    || jsonb_strip_nulls(jsonb_build_object('organization_id', p_object #> '{metadata,organization_id}'))
    || case
      when p_object ? 'default_source' or p_object #> '{invoice_settings}' ? 'default_payment_method'
        then jsonb_build_object(
          'has_payment_method',
          coalesce(
            stripe.id_in(p_object -> 'default_source'), stripe.id_in(p_object #> '{invoice_settings,default_payment_method}')
          ) is not null
        )
      else '{}'
    end
$$;

-- features: lookup keys of what a customer has now; is_partial: there are more than were listed.
create or replace function stripe.entitlement_facts(p_object jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select case
    when jsonb_typeof(p_object #> '{entitlements,data}') = 'array' then jsonb_build_object(
      'features',
      (
        select coalesce(jsonb_agg(distinct e.entitlement ->> 'lookup_key') filter (where e.entitlement ->> 'lookup_key' is not null), '[]')
        from jsonb_array_elements(p_object #> '{entitlements,data}') as e (entitlement)
      ),
      'is_partial', p_object #> '{entitlements,has_more}' is not distinct from 'true'::jsonb
    )
    else '{}'
  end
$$;

-- {} for what we make nothing of.
create or replace function stripe.facts_of(p_type text, p_object jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select case
    when p_type like 'customer.subscription.%' then stripe.subscription_facts(p_object)
    when p_type like 'invoice.%' then stripe.invoice_facts(p_object)
    when p_type like 'invoice_payment.%' then stripe.invoice_payment_facts(p_object)
    when p_type like 'charge.%' then stripe.charge_facts(p_object)
    when p_type in ('customer.created', 'customer.updated', 'customer.deleted') then stripe.customer_facts(p_object)
    when p_type = 'entitlements.active_entitlement_summary.updated' then stripe.entitlement_facts(p_object)
    else '{}'
  end
$$;

grant execute on function stripe.id_in(jsonb), stripe.time_in(jsonb), stripe.picked(jsonb, text[]), stripe.price_facts(jsonb),
  stripe.subscription_facts(jsonb),
  stripe.subscription_of_invoice(jsonb), stripe.invoice_facts(jsonb), stripe.invoice_payment_facts(jsonb), stripe.charge_facts(jsonb),
  stripe.customer_facts(jsonb), stripe.entitlement_facts(jsonb), stripe.facts_of(text, jsonb) to goldleaves_kernel;
