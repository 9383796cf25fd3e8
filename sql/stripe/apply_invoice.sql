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
  end if;
  v_facts := stripe.mirror_invoice(v_organization_id, p_event.customer_id, p_event.object_id, p_event.is_live);
  outcome := case
    when p_event.id = (select i.latest_event_id from stripe.invoices i where i.id = p_event.object_id) then 'applied'
    else 'stale'
  end;
  if p_event.type = 'invoice.paid' then
    if stripe.record_payment(v_organization_id, p_event, v_facts) then
      outcome := 'applied';
    end if;
  end if;
  if p_event.type in ('invoice.paid', 'invoice.payment_failed') and p_event.subscription_id is not null
    -- Else its first event is yet to come, and brings this along.
    and exists (select from stripe.subscriptions s where s.id = p_event.subscription_id)
  then
    if stripe.renew_timeline(v_organization_id, p_waits) then
      outcome := 'applied';
    end if;
    perform stripe.mirror_subscription(v_organization_id, p_event.customer_id, p_event.subscription_id, p_event.is_live);
  end if;
  if p_event.type = 'invoice.payment_failed' then
    perform notifications.enqueue_webhook(
      v_organization_id, 'payment.failed',
      jsonb_strip_nulls(jsonb_build_object(
        'organization_id', v_organization_id, 'stripe_invoice_id', p_event.object_id, 'number', v_facts -> 'number',
        'amount_due_cents', v_facts -> 'amount_due', 'currency', v_facts -> 'currency', 'attempt_count', p_event.facts -> 'attempt_count',
        'hosted_invoice_url', v_facts -> 'hosted_invoice_url', 'failed_at', metering.time_text(p_event.created_at)
      ))
    );
    outcome := 'applied';
  end if;
  message := case outcome when 'stale' then 'a later event was applied before' else coalesce(p_event.facts ->> 'status', 'applied') end;
end;
$$;

-- What was paid of an invoice of Stripe's, or of one of ours that its metadata names (goldleaves_invoice_id). Once, however often it is told.
-- Returns whether it is new.
create or replace function stripe.record_payment(p_organization_id uuid, p_event stripe.webhook_events, p_facts jsonb)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_amount numeric := (p_facts ->> 'amount_paid')::numeric;
  v_paid_at timestamptz := coalesce(stripe.time_in(p_facts -> 'paid_at'), p_event.created_at);
begin
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
  elsif p_facts ? 'invoice_id' then
    perform billing.record_payment(
      p_organization_id, (p_facts ->> 'invoice_id')::uuid, v_amount, 'stripe', p_event.object_id, v_paid_at
    );
  else
    perform billing.take_ledger_lock(p_organization_id);
    insert into billing.payments (organization_id, stripe_invoice_id, amount_cents, method, reference, paid_at, recorded_by)
    values (p_organization_id, p_event.object_id, v_amount, 'stripe', p_event.object_id, v_paid_at, 'stripe')
    on conflict do nothing;
  end if;
  return true;
end;
$$;

grant execute on function stripe.apply_invoice(stripe.webhook_events, boolean), stripe.record_payment(uuid, stripe.webhook_events, jsonb)
  to goldleaves_kernel;
