-- What an event of an invoice at Stripe does: it is mirrored, what was paid is among payments, and a payment that failed makes the
-- subscription past due.

create or replace function stripe.apply_invoice(p_event stripe.webhook_events, p_waits boolean, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_organization_id uuid := stripe.organization_of(p_event.customer_id);
  v_facts jsonb;
begin
  if v_organization_id is null then
    outcome := 'unlinked';
    message := format('customer %s is no organization''s yet', coalesce(p_event.customer_id, '(none)'));
    return;
  elsif p_event.object_id is null then
    outcome := 'ignored';
    message := 'the invoice has no id';
    return;
  end if;
  select m.facts, case m.event_id when p_event.id then 'applied' else 'stale' end into v_facts, outcome
  from stripe.mirror_invoice(v_organization_id, p_event.customer_id, p_event.object_id, p_event.is_live, p_event) m;
  if p_event.type = 'invoice.paid' or p_event.facts ->> 'status' = 'paid' then
    if stripe.record_payment(v_organization_id, p_event, v_facts) then
      outcome := 'applied';
    end if;
  end if;
  if p_event.type in ('invoice.paid', 'invoice.payment_failed') and p_event.subscription_id is not null
    -- Else its first event is yet to come, and brings this along.
    and exists (select from stripe.subscriptions s where s.id = p_event.subscription_id)
    and not stripe.apply_next(p_event)
  then
    if stripe.renew_timeline(v_organization_id, p_waits) then
      outcome := 'applied';
    end if;
    perform stripe.mirror_subscription(v_organization_id, p_event.customer_id, p_event.subscription_id, p_event.is_live);
  end if;
  perform stripe.apply_what_waited_for(p_event.object_id, array['invoice_payment.paid', 'charge.refunded', 'charge.dispute.created'], p_waits);
  if p_event.type = 'invoice.payment_failed' then
    if stripe.is_news(p_event.id) then
      perform notifications.enqueue_webhook(
        v_organization_id, 'payment.failed',
        jsonb_strip_nulls(jsonb_build_object(
          'organization_id', v_organization_id, 'stripe_invoice_id', p_event.object_id, 'number', v_facts -> 'number',
          'amount_due_cents', v_facts -> 'amount_due', 'currency', v_facts -> 'currency', 'attempt_count', p_event.facts -> 'attempt_count',
          'hosted_invoice_url', v_facts -> 'hosted_invoice_url', 'failed_at', metering.time_text(p_event.created_at)
        ))
      );
    end if;
    outcome := 'applied';
  end if;
  message := case outcome when 'stale' then 'a later event was applied before' else coalesce(p_event.facts ->> 'status', 'applied') end;
end;
$$;

-- Whether nobody was sent a message of an event yet. It is taken for sent from then on.
create or replace function stripe.is_news(p_event_id text)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
begin
  update stripe.webhook_events e set told_at = clock_timestamp() where e.id = p_event_id and e.told_at is null;
  return found;
end;
$$;

-- What was paid of an invoice of Stripe's, or of one of ours that its metadata names (goldleaves_invoice_id). Once, however often it is told, and
-- never lost: what does not fit ours, as when it was paid twice, is a payment of Stripe's invoice. Returns whether it is new.
create or replace function stripe.record_payment(p_organization_id uuid, p_event stripe.webhook_events, p_facts jsonb)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  -- Of the event that says that it is paid, which is the same whatever else has come.
  v_facts jsonb := p_facts || p_event.facts;
  v_amount numeric := (v_facts ->> 'amount_paid')::numeric;
  v_invoice billing.invoices;
begin
  perform billing.take_ledger_lock(p_organization_id);
  if coalesce(v_amount, 0) <= 0 then
    return false;
  elsif exists (
    select
    from billing.payments p
    where p.organization_id = p_organization_id
      and p.kind = 'payment'
      and p.reference = p_event.object_id
  ) then
    return false;
  end if;
  if tenancy.is_uuid(v_facts ->> 'invoice_id') then
    select i.* into v_invoice
    from billing.invoices i
    where i.organization_id = p_organization_id
      and i.id = (v_facts ->> 'invoice_id')::uuid
      and i.kind = 'invoice'
      and i.currency = lower(v_facts ->> 'currency')
      and (select s.remaining_cents + s.written_off_cents >= v_amount from billing.settlement_of(i) s);
  end if;
  insert into billing.payments (organization_id, invoice_id, stripe_invoice_id, amount_cents, method, reference, paid_at, recorded_by)
  values (
    p_organization_id, v_invoice.id, case when v_invoice.id is null then p_event.object_id end, v_amount, 'stripe', p_event.object_id,
    coalesce(stripe.time_in(v_facts -> 'paid_at'), p_event.created_at), 'stripe'
  );
  return true;
end;
$$;

-- Which payment an invoice was paid by: the invoice itself is known by its own events.
create or replace function stripe.apply_invoice_payment(p_event stripe.webhook_events, p_waits boolean, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_invoice stripe.invoices;
begin
  select * into v_invoice from stripe.invoices i where i.id = p_event.object_id;
  if not found then
    outcome := stripe.outcome_of_waiting(p_event);
    message := format('invoice %s is not known yet', coalesce(p_event.object_id, '(none)'));
    return;
  end if;
  perform stripe.mirror_invoice(v_invoice.organization_id, v_invoice.customer_id, v_invoice.id, v_invoice.is_live);
  perform stripe.apply_what_waited_for(v_invoice.id, array['charge.refunded', 'charge.dispute.created'], p_waits);
  outcome := 'applied';
  message := format('%s was paid by %s', v_invoice.id, coalesce(p_event.facts ->> 'payment_intent', p_event.facts ->> 'charge', '(unknown)'));
end;
$$;

-- What names no customer has no lock in common with what it waits for, and may miss it: so it is tried again for as long as what fails is, and then
-- waits to be called.
create or replace function stripe.outcome_of_waiting(p_event stripe.webhook_events)
returns text
language sql
stable
set search_path = ''
as $$ select case when stripe.pause_after(p_event.attempts + 1) is null then 'unlinked' else 'pending' end $$;

-- What came before the invoice that it is of: which payment it was paid by, refunds and disputes. Who applies one of them meanwhile is on its row,
-- waits for the customer's lock, and sees the invoice afterwards. p_types: not that of the event that is applied here, of which it is yet to be
-- written down that it waits no longer.
create or replace function stripe.apply_what_waited_for(p_invoice_id text, p_types text[], p_waits boolean)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_event stripe.webhook_events;
begin
  for v_event in
    select e.*
    from stripe.webhook_events e
    where e.id in (
        select p.id
        from stripe.webhook_events p
        where p.object_id = p_invoice_id
          and p.type = 'invoice_payment.paid'
        union all
        select c.id
        from stripe.invoices i
        cross join lateral (
          select jsonb_build_object('invoice', i.id) as facts
          union all
          select jsonb_build_object('charge', i.charge_id) where i.charge_id is not null
          union all
          select jsonb_build_object('payment_intent', i.payment_intent_id) where i.payment_intent_id is not null
          union all
          select e.facts - 'invoice' from stripe.webhook_events e where e.object_id = p_invoice_id and e.type = 'invoice_payment.paid'
        ) as f
        join stripe.webhook_events c
          on c.facts @> f.facts
          and c.type in ('charge.refunded', 'charge.dispute.created', 'invoice_payment.paid')
          and f.facts <> '{}'
        where i.id = p_invoice_id
          and c.type <> 'invoice_payment.paid'
      )
      and e.type = any (p_types)
      and e.status in ('failed', 'unlinked')
    order by e.type = 'invoice_payment.paid' desc, e.created_at, e.id
    for update of e skip locked
  loop
    perform stripe.settle(v_event, p_waits);
  end loop;
end;
$$;

grant execute on function stripe.apply_invoice(stripe.webhook_events, boolean), stripe.record_payment(uuid, stripe.webhook_events, jsonb),
  stripe.is_news(text), stripe.apply_invoice_payment(stripe.webhook_events, boolean), stripe.outcome_of_waiting(stripe.webhook_events),
  stripe.apply_what_waited_for(text, text[], boolean) to goldleaves_kernel;
