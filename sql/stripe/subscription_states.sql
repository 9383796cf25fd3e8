-- What a subscription at Stripe was, event after event: made anew of all events that there are of it, in an order that depends on nothing but
-- themselves. So it is the same in whatever order they came, and however often.

-- Within a second the first event is the creation, and the last one the deletion; what invoices say comes before what is said of the
-- subscription itself, and a payment that succeeds after one that failed. A snapshot, which we asked for, is of the end of its second.
create or replace function stripe.rank_of(p_type text)
returns integer
language sql
immutable
parallel safe
as $$
  select case
    when p_type = 'customer.subscription.created' then 0
    when p_type = 'invoice.payment_failed' then 1
    when p_type = 'invoice.paid' then 2
    when p_type = 'customer.subscription.snapshot' then 4
    when p_type = 'customer.subscription.deleted' then 5
    else 3
  end
$$;

-- A row for all events of one second and rank: mostly one event. By their ids.
create or replace function stripe.subscription_events(p_subscription_id text)
returns table (at timestamptz, rank integer, has_snapshot boolean, ids text[], types text[], objects text[], facts jsonb[], previous jsonb[])
language sql
stable
set search_path = ''
as $$
  select
    e.created_at, e.rank, bool_or(e.rank = 4) over (partition by e.created_at), array_agg(e.id order by e.id),
    array_agg(e.type order by e.id), array_agg(e.object_id order by e.id), array_agg(e.facts - '_previous' order by e.id), array_agg(e.facts -> '_previous' order by e.id)
  from (
    select w.id, w.type, w.created_at, w.object_id, w.facts, stripe.rank_of(w.type) as rank
    from stripe.webhook_events w
    where w.subscription_id = p_subscription_id
      and w.status <> 'ignored'
      and w.type in (
        'customer.subscription.created', 'customer.subscription.updated', 'customer.subscription.deleted', 'customer.subscription.paused',
        'customer.subscription.resumed', 'customer.subscription.trial_will_end', 'customer.subscription.snapshot', 'invoice.paid',
        'invoice.payment_failed'
      )
  ) as e
  group by e.created_at, e.rank
  order by e.created_at, e.rank
$$;

-- What it was from its creation until the first event that we have of it: what that one says it was before, else the status that comes before
-- that status.
create or replace function stripe.state_before(p_facts jsonb, p_previous jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select p_facts || coalesce(p_previous, '{}') || case
    when p_previous ? 'status' then '{}'::jsonb
    when p_facts ->> 'status' in ('past_due', 'unpaid', 'paused', 'canceled') then '{"status": "active"}'::jsonb
    when p_facts ->> 'status' = 'incomplete_expired' then '{"status": "incomplete"}'::jsonb
    else '{}'
  end
$$;

-- A row an event, in their order, and one without for the time before the first: what is known of the subscription from then on. What an invoice
-- says counts until Stripe's own word for the status comes: a payment that failed, if it is not of an invoice from before the last one, and one
-- that succeeds after it. is_tied: events of that second do not say which one came last.
create or replace function stripe.subscription_states(p_subscription_id text)
returns table (n integer, at timestamptz, event_id text, facts jsonb, is_tied boolean)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_second record;
  v_order record;
  v_i integer;
  v_facts jsonb := '{}';
  v_invoice_at timestamptz;
  v_failed_invoice text;
  v_end jsonb := '{}';
begin
  n := 0;
  for v_second in select e.* from stripe.subscription_events(p_subscription_id) e loop
    v_order := stripe.order_of_ties(v_facts, v_second.facts, v_second.previous);
    foreach v_i in array v_order.sequence loop
      case v_second.types[v_i]
        when 'invoice.paid' then
          if v_facts ->> 'status' in ('past_due', 'unpaid', 'incomplete')
            and v_second.objects[v_i] in (coalesce(v_facts ->> 'latest_invoice', v_second.objects[v_i]), v_failed_invoice)
          then
            v_facts := v_facts || '{"status": "active"}';
          end if;
        when 'invoice.payment_failed' then
          if v_facts ->> 'status' = 'active'
            and (
              v_facts ->> 'latest_invoice' = v_second.objects[v_i]
              or coalesce(stripe.time_in(v_second.facts[v_i] -> 'created') >= v_invoice_at, true)
            )
          then
            v_facts := v_facts || '{"status": "past_due"}';
            v_failed_invoice := v_second.objects[v_i];
          end if;
        when 'customer.subscription.deleted' then
          v_facts := v_facts || v_second.facts[v_i] || case
            when v_second.facts[v_i] ->> 'status' = 'incomplete_expired' then '{}'::jsonb
            else '{"status": "canceled"}'
          end;
          -- For good: what Stripe's servers say of it after that, by clocks of their own, brings it back no more.
          v_end := stripe.picked(v_facts, '{status,canceled_at,ended_at}');
        else
          v_facts := v_facts || v_second.facts[v_i] || v_end;
      end case;
      if v_second.rank in (1, 2) then
        v_invoice_at := greatest(v_invoice_at, stripe.time_in(v_second.facts[v_i] -> 'created'));
      end if;
      continue when not v_facts ? 'status';

      if n = 0 and stripe.time_in(v_facts -> 'created') < v_second.at then
        n := 1;
        at := stripe.time_in(v_facts -> 'created');
        is_tied := false;
        facts := case
          when v_second.types[v_i] = 'customer.subscription.created' then v_facts
          else stripe.state_before(v_facts, v_second.previous[v_i])
        end;
        return next;
      end if;
      n := n + 1;
      event_id := v_second.ids[v_i];
      at := v_second.at;
      facts := v_facts;
      is_tied := v_second.rank = 3 and (not v_order.is_decided or v_second.has_snapshot);
      return next;
    end loop;
  end loop;
end;
$$;

grant execute on function stripe.rank_of(text), stripe.subscription_events(text), stripe.state_before(jsonb, jsonb),
  stripe.subscription_states(text) to goldleaves_kernel;
