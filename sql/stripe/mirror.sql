-- Subscriptions and invoices as Stripe has them, made anew of all events that there are of one: the last one counts, and what it does not say
-- is what the one before it said.

create or replace function stripe.mirror_subscription(p_organization_id uuid, p_customer_id text, p_id text, p_is_live boolean)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into stripe.subscriptions as s (
    organization_id, id, customer_id, subscription_id, status, plan_code, price_id, current_period_start, current_period_end, trial_end, cancel_at,
    canceled_at, ended_at, is_live, facts, latest_event_id, latest_event_at
  )
  select
    p_organization_id, p_id, p_customer_id, stripe.uuid_of(p_id), t.facts ->> 'status', p.plan_code, p.price_id,
    stripe.time_in(t.facts -> 'current_period_start'), stripe.time_in(t.facts -> 'current_period_end'), stripe.time_in(t.facts -> 'trial_end'),
    coalesce(
      stripe.time_in(t.facts -> 'cancel_at'),
      case when (t.facts ->> 'cancel_at_period_end')::boolean then stripe.time_in(t.facts -> 'current_period_end') end
    ),
    stripe.time_in(t.facts -> 'canceled_at'), stripe.time_in(t.facts -> 'ended_at'), p_is_live, t.facts, t.event_id, t.at
  from (select * from stripe.subscription_states(p_id) order by n desc limit 1) as t
  cross join lateral stripe.plan_of(t.facts -> 'prices') p
  on conflict (organization_id, id) do update
  set
    status = excluded.status, plan_code = excluded.plan_code, price_id = excluded.price_id,
    current_period_start = excluded.current_period_start, current_period_end = excluded.current_period_end, trial_end = excluded.trial_end,
    cancel_at = excluded.cancel_at, canceled_at = excluded.canceled_at, ended_at = excluded.ended_at, facts = excluded.facts,
    latest_event_id = excluded.latest_event_id, latest_event_at = excluded.latest_event_at
$$;

-- Of an invoice in one second: it is finalized, then a payment fails, then it is paid, or given up. Which payment it was paid by is told beside it.
create or replace function stripe.invoice_events(p_id text)
returns table (n bigint, id text, type text, at timestamptz, facts jsonb)
language sql
stable
set search_path = ''
as $$
  select
    row_number() over (
      order by
        e.created_at,
        case
          when e.type = 'invoice.snapshot' then 4
          when e.facts ->> 'status' in ('paid', 'void', 'uncollectible') then 3
          when e.type = 'invoice.payment_failed' then 2
          else 1
        end,
        e.id
    ),
    e.id, e.type, e.created_at, e.facts - '_previous'
  from stripe.webhook_events e
  where e.object_id = p_id
    and e.status <> 'ignored'
    and (e.type like 'invoice.%' or e.type = 'invoice_payment.paid')
$$;

create or replace function stripe.invoice_facts_now(p_id text, out facts jsonb, out event_id text, out at timestamptz)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_event record;
begin
  facts := '{}';
  for v_event in select e.* from stripe.invoice_events(p_id) e order by e.n loop
    facts := facts || v_event.facts;
    if v_event.type <> 'invoice_payment.paid' then
      event_id := v_event.id;
      at := v_event.at;
    end if;
  end loop;
end;
$$;

-- p_next: the event for which it is done, if it is one of the invoice itself. When it comes after all others, as most do, then what the last one left
-- is all that has to be known of those. Returns the facts, and which event is the last one.
create or replace function stripe.mirror_invoice(
  p_organization_id uuid, p_customer_id text, p_id text, p_is_live boolean, p_next stripe.webhook_events default null,
  out facts jsonb, out event_id text
)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_at timestamptz;
begin
  select i.facts || (p_next.facts - '_previous'), p_next.id, p_next.created_at into facts, event_id, v_at
  from stripe.invoices i
  where i.organization_id = p_organization_id
    and i.id = p_id
    and i.latest_event_at < p_next.created_at
    and not exists (
      select
      from stripe.webhook_events e
      where e.object_id = p_id
        and e.id <> p_next.id
        and (e.created_at >= p_next.created_at or e.status not in ('applied', 'stale', 'ignored'))
    );
  if not found then
    select f.facts, f.event_id, f.at into facts, event_id, v_at from stripe.invoice_facts_now(p_id) f;
  end if;
  insert into stripe.invoices as i (
    organization_id, id, customer_id, subscription_id, number, status, currency, total_cents, amount_due_cents, amount_paid_cents, period_start,
    period_end, hosted_invoice_url, charge_id, payment_intent_id, is_live, facts, latest_event_id, latest_event_at
  )
  values (
    p_organization_id, p_id, p_customer_id, facts ->> 'subscription', facts ->> 'number', facts ->> 'status', facts ->> 'currency',
    (facts ->> 'total')::numeric, (facts ->> 'amount_due')::numeric, (facts ->> 'amount_paid')::numeric,
    stripe.time_in(facts -> 'period_start'), stripe.time_in(facts -> 'period_end'), facts ->> 'hosted_invoice_url', facts ->> 'charge',
    facts ->> 'payment_intent', p_is_live, facts, event_id, v_at
  )
  on conflict (organization_id, id) do update
  set
    subscription_id = excluded.subscription_id, number = excluded.number, status = excluded.status, currency = excluded.currency,
    total_cents = excluded.total_cents, amount_due_cents = excluded.amount_due_cents, amount_paid_cents = excluded.amount_paid_cents,
    period_start = excluded.period_start, period_end = excluded.period_end, hosted_invoice_url = excluded.hosted_invoice_url,
    charge_id = excluded.charge_id, payment_intent_id = excluded.payment_intent_id, facts = excluded.facts,
    latest_event_id = excluded.latest_event_id, latest_event_at = excluded.latest_event_at;
end;
$$;

grant execute on function stripe.mirror_subscription(uuid, text, text, boolean), stripe.invoice_events(text), stripe.invoice_facts_now(text),
  stripe.mirror_invoice(uuid, text, text, boolean, stripe.webhook_events) to goldleaves_kernel;
