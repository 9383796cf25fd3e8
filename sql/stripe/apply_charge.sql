-- What was paid back of a charge, and what is disputed. A charge names its invoice before 2025-03-31 alone; since then the payment intent says
-- which it is, and where nobody has told us of that, Stripe is asked.

-- The payment that a charge made.
create or replace function stripe.payment_of(p_facts jsonb)
returns billing.payments
language sql
stable
set search_path = ''
as $$
  select p.*
  from (
    select i.organization_id, i.id
    from stripe.invoices i
    where i.id = p_facts ->> 'invoice'
      or i.charge_id = p_facts ->> 'charge'
      or i.payment_intent_id = p_facts ->> 'payment_intent'
    union all
    -- An invoice may have been paid by several.
    select i.organization_id, i.id
    from stripe.webhook_events e
    join stripe.invoices i on i.id = e.object_id
    where e.type in ('charge.refunded', 'charge.dispute.created', 'invoice_payment.paid')
      and e.type = 'invoice_payment.paid'
      and (
        e.facts @> jsonb_build_object('payment_intent', p_facts -> 'payment_intent')
        or e.facts @> jsonb_build_object('charge', p_facts -> 'charge')
      )
      and e.status <> 'ignored'
  ) as i
  join billing.payments p on p.organization_id = i.organization_id and p.kind = 'payment' and p.reference = i.id
  order by i.id
  limit 1
$$;

-- How much of a charge is paid back by what was applied of its events, without or with one of them. Each says from which sum to which one it went
-- (0 where it does not say from which), and what two of them tell of counts once.
create or replace function stripe.refunded_of(p_charge_id text, p_event_id text, p_with boolean)
returns numeric
language sql
stable
set search_path = ''
as $$
  select coalesce(sum(upper(r.sums) - lower(r.sums)), 0)
  from (
    select unnest(range_agg(int8range(
      least((e.facts #>> '{_previous,amount_refunded}')::bigint, (e.facts ->> 'amount_refunded')::bigint), (e.facts ->> 'amount_refunded')::bigint
    )))
    from (
      select
        jsonb_set(e.facts, '{_previous}', '{"amount_refunded": 0}' || jsonb_strip_nulls(coalesce(e.facts -> '_previous', '{}'))) as facts
      from stripe.webhook_events e
      where e.object_id = p_charge_id
        and e.type = 'charge.refunded'
        and (e.id = p_event_id and p_with or e.id <> p_event_id and e.status in ('applied', 'stale'))
        and e.facts ->> 'amount_refunded' is not null
    ) as e
  ) as r (sums)
$$;

create or replace function stripe.apply_refund(p_event stripe.webhook_events, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_payment billing.payments := stripe.payment_of(p_event.facts);
  v_amount numeric;
  v_reference text := format('%s:%s', p_event.object_id, p_event.facts ->> 'amount_refunded');
begin
  if p_event.customer_id is not null and stripe.organization_of(p_event.customer_id) is null then
    outcome := 'unlinked';
    message := format('customer %s is no organization''s yet', p_event.customer_id);
    return;
  elsif v_payment.id is null then
    perform stripe.ask_for('charge', p_event.object_id);
    outcome := stripe.outcome_of_waiting(p_event);
    message := format('the payment that charge %s made is not known yet', p_event.object_id);
    return;
  end if;
  perform billing.take_ledger_lock(v_payment.organization_id);
  if exists (
    select from billing.refunds r where r.organization_id = v_payment.organization_id and r.reference = v_reference
  ) then
    outcome := 'applied';
    message := v_reference;
    return;
  end if;
  v_amount := stripe.refunded_of(p_event.object_id, p_event.id, true) - stripe.refunded_of(p_event.object_id, p_event.id, false);
  if v_amount <= 0 then
    outcome := 'stale';
    message := 'it was paid back before';
    return;
  end if;
  insert into billing.refunds (organization_id, payment_id, amount_cents, reference, refunded_at, recorded_by)
  values (v_payment.organization_id, v_payment.id, v_amount, v_reference, p_event.created_at, 'stripe');
  outcome := 'applied';
  message := v_reference;
end;
$$;

create or replace function stripe.apply_dispute(p_event stripe.webhook_events, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_payment billing.payments := stripe.payment_of(p_event.facts);
begin
  if v_payment.id is null then
    perform stripe.ask_for('charge', p_event.facts ->> 'charge');
    outcome := stripe.outcome_of_waiting(p_event);
    message := format('the payment that charge %s made is not known yet', p_event.facts ->> 'charge');
    return;
  end if;
  insert into stripe.disputes (organization_id, id, charge_id, amount_cents, currency, reason, status, created_at)
  values (
    v_payment.organization_id, p_event.object_id, p_event.facts ->> 'charge', (p_event.facts ->> 'amount')::numeric,
    p_event.facts ->> 'currency', p_event.facts ->> 'reason', p_event.facts ->> 'status', p_event.created_at
  )
  on conflict do nothing;
  if found then
    perform notifications.enqueue_webhook(
      v_payment.organization_id, 'payment.disputed',
      jsonb_strip_nulls(jsonb_build_object(
        'organization_id', v_payment.organization_id, 'dispute_id', p_event.object_id, 'payment_id', v_payment.id,
        'amount_cents', p_event.facts -> 'amount', 'currency', p_event.facts -> 'currency', 'reason', p_event.facts -> 'reason',
        'disputed_at', metering.time_text(p_event.created_at)
      ))
    );
  end if;
  outcome := 'applied';
  message := 'disputed';
end;
$$;

grant execute on function stripe.payment_of(jsonb), stripe.refunded_of(text, text, boolean), stripe.apply_refund(stripe.webhook_events),
  stripe.apply_dispute(stripe.webhook_events) to goldleaves_kernel;
