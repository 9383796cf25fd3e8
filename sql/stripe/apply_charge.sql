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
  from stripe.invoices i
  join billing.payments p on p.organization_id = i.organization_id and p.kind = 'payment' and p.reference = i.id
  where i.id = p_facts ->> 'invoice'
    or i.charge_id = p_facts ->> 'charge'
    or i.payment_intent_id = p_facts ->> 'payment_intent'
  limit 1
$$;

-- Each event tells of one refund: how much was paid back after it, and how much before. So in any order the same entries come of them.
create or replace function stripe.apply_refund(p_event stripe.webhook_events, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_payment billing.payments := stripe.payment_of(p_event.facts);
  v_refunded numeric := (p_event.facts ->> 'amount_refunded')::numeric;
  v_amount numeric;
  v_reference text := format('%s:%s', p_event.object_id, p_event.facts ->> 'amount_refunded');
begin
  if v_payment.id is null then
    perform stripe.ask_for('charge', p_event.object_id);
    outcome := 'unlinked';
    message := format('the payment that charge %s made is not known yet', p_event.object_id);
    return;
  end if;
  outcome := 'applied';
  message := v_reference;
  perform billing.take_ledger_lock(v_payment.organization_id);
  if exists (
    select from billing.refunds r where r.organization_id = v_payment.organization_id and r.reference = v_reference
  ) then
    return;
  end if;
  v_amount := v_refunded - coalesce(
    (p_event.facts #>> '{_previous,amount_refunded}')::numeric,
    (
      select sum(r.amount_cents)
      from billing.refunds r
      where r.organization_id = v_payment.organization_id
        and r.payment_id = v_payment.id
    ),
    0
  );
  if v_amount <= 0 then
    outcome := 'stale';
    message := 'it was paid back before';
    return;
  end if;
  insert into billing.refunds (organization_id, payment_id, amount_cents, reference, refunded_at, recorded_by)
  values (v_payment.organization_id, v_payment.id, v_amount, v_reference, p_event.created_at, 'stripe');
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
    outcome := 'unlinked';
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

grant execute on function stripe.payment_of(jsonb), stripe.apply_refund(stripe.webhook_events), stripe.apply_dispute(stripe.webhook_events)
  to goldleaves_kernel;
