-- Which event does what. Whoever applies one holds the lock of its customer, so that of two at once the second one sees the first.

create or replace function stripe.lock_customer(p_customer_id text)
returns void
language sql
volatile
set search_path = ''
as $$ select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('goldleaves.stripe.' || coalesce(p_customer_id, ''), 0)) $$;

-- Whether anything is made of events of a type; the others are stored, and that is all.
create or replace function stripe.is_handled(p_type text)
returns boolean
language sql
immutable
parallel safe
as $$
  select p_type in (
    'customer.subscription.created', 'customer.subscription.updated', 'customer.subscription.deleted', 'customer.subscription.paused',
    'customer.subscription.resumed', 'customer.subscription.trial_will_end', 'customer.subscription.snapshot',
    'invoice.finalized', 'invoice.paid', 'invoice.payment_failed', 'invoice.voided', 'invoice.marked_uncollectible', 'invoice.snapshot',
    'invoice_payment.paid', 'charge.refunded', 'charge.dispute.created', 'checkout.session.completed', 'customer.created', 'customer.updated',
    'customer.deleted', 'entitlements.active_entitlement_summary.updated', 'v1.billing.meter.error_report_triggered',
    'v1.billing.meter.no_meter_found'
  )
$$;

-- p_waits: whether it may wait for who closes a period; else it raises lock_not_available.
create or replace function stripe.apply(p_event stripe.webhook_events, p_waits boolean, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_applied record;
begin
  if not stripe.is_handled(p_event.type) then
    outcome := 'ignored';
    message := format('nothing is made of %s', left(p_event.type, 80));
    return;
  end if;
  case
    when p_event.type like 'customer.subscription.%' then
      v_applied := stripe.apply_subscription(p_event, p_waits);
    when p_event.type like 'customer.%' then
      v_applied := stripe.apply_customer(p_event, p_waits);
    when p_event.type like 'invoice.%' then
      v_applied := stripe.apply_invoice(p_event, p_waits);
    when p_event.type = 'invoice_payment.paid' then
      v_applied := stripe.apply_invoice_payment(p_event, p_waits);
    when p_event.type = 'charge.refunded' then
      v_applied := stripe.apply_refund(p_event);
    when p_event.type = 'charge.dispute.created' then
      v_applied := stripe.apply_dispute(p_event);
    when p_event.type = 'checkout.session.completed' then
      v_applied := stripe.apply_checkout(p_event, p_waits);
    when p_event.type = 'entitlements.active_entitlement_summary.updated' then
      v_applied := stripe.apply_entitlements(p_event);
    else
      v_applied := stripe.apply_meter_errors(p_event);
  end case;
  outcome := v_applied.outcome;
  message := v_applied.message;
end;
$$;

-- Applies an event that is stored and writes down what came of it. What fails is tried again by the sidecar: then it raises nothing, and the
-- outcome is pending. Only that a lock was not to be had is raised, where it may not wait for it.
create or replace function stripe.settle(p_event stripe.webhook_events, p_waits boolean, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_pause interval := stripe.pause_after(p_event.attempts + 1);
begin
  begin
    select a.outcome, a.message into outcome, message from stripe.apply(p_event, p_waits) a;
  exception when others then
    if sqlstate = '55P03' and not p_waits then
      raise;
    end if;
    outcome := 'pending';
    message := left(sqlerrm, 500);
  end;
  if outcome = 'pending' and v_pause is null then
    outcome := 'dead';
  end if;
  -- Most are stored as what they then are.
  if outcome = 'applied' and p_event.status = 'applied' and p_event.organization_id is not null then
    return;
  end if;
  update stripe.webhook_events e
  set
    status = case outcome when 'pending' then 'failed' else outcome end,
    message = nullif(settle.message, case when outcome = 'applied' then settle.message end),
    organization_id = coalesce(stripe.organization_of(p_event.customer_id), e.organization_id),
    attempts = p_event.attempts + 1,
    next_attempt_at = clock_timestamp() + coalesce(v_pause * (1 + random() * 0.2), '0'),
    settled_at = case when outcome in ('applied', 'stale', 'ignored') then clock_timestamp() end
  where e.id = p_event.id;
end;
$$;

-- How long to wait after so many attempts. Null: no more.
create or replace function stripe.pause_after(p_attempts integer)
returns interval
language sql
immutable
parallel safe
set search_path = ''
as $$
  select ('{5 seconds,30 seconds,2 minutes,10 minutes,1 hour,6 hours,12 hours,24 hours}'::interval[])[p_attempts]
$$;

-- What waited for a customer to be linked, or for a payment to be known. After two seconds the rest is left to the sidecar: there may be very
-- many, and each is worked out of all of them, so that what is applied by then is right already.
create or replace function stripe.apply_waiting(p_customer_id text, p_waits boolean)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_event stripe.webhook_events;
  v_until timestamptz := clock_timestamp() + interval '2 seconds';
begin
  for v_event in
    select e.*
    from stripe.webhook_events e
    where e.customer_id = p_customer_id
      and e.status = 'unlinked'
    order by e.created_at, e.id
    for update
  loop
    if clock_timestamp() > v_until then
      update stripe.webhook_events e
      set status = 'received', message = null, attempts = 0, next_attempt_at = clock_timestamp(), settled_at = null
      where e.customer_id = p_customer_id
        and e.status = 'unlinked';
      return;
    end if;
    perform stripe.settle(v_event, p_waits);
  end loop;
end;
$$;

grant execute on function stripe.lock_customer(text), stripe.is_handled(text), stripe.apply(stripe.webhook_events, boolean),
  stripe.settle(stripe.webhook_events, boolean), stripe.pause_after(integer), stripe.apply_waiting(text, boolean) to goldleaves_kernel;
