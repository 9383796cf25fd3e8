-- Most events of a subscription come after all others that there are of it, and change nothing that its phases follow from: its period moves on,
-- or an invoice of it is paid. What is known of its last state is then enough: the same comes of them as of working out all states anew.

-- Returns whether that is all that is to be done.
create or replace function stripe.apply_next(p_event stripe.webhook_events)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_last stripe.subscriptions;
  v_facts jsonb;
begin
  select s.* into v_last
  from stripe.subscriptions s
  where s.id = p_event.subscription_id
    and s.customer_id = p_event.customer_id
    -- In one second their order is not that of their times.
    and s.latest_event_at < p_event.created_at
    and s.plan_code is not null;
  if not found or exists (
    -- What could not be applied is no part of the last state that is known.
    select
    from stripe.webhook_events e
    where e.subscription_id = p_event.subscription_id
      and e.status in ('received', 'failed', 'dead', 'unlinked')
  ) then
    return false;
  end if;
  v_facts := v_last.facts;
  if p_event.type = 'customer.subscription.updated' then
    v_facts := v_facts || (p_event.facts - '_previous');
    if stripe.telling_facts(v_facts) <> stripe.telling_facts(v_last.facts) then
      return false;
    end if;
  elsif p_event.type <> 'invoice.paid' or v_facts ->> 'status' is null or v_facts ->> 'status' in ('past_due', 'unpaid', 'incomplete') then
    return false;
  end if;
  update stripe.subscriptions s
  set
    facts = v_facts, current_period_start = stripe.time_in(v_facts -> 'current_period_start'),
    current_period_end = stripe.time_in(v_facts -> 'current_period_end'), canceled_at = stripe.time_in(v_facts -> 'canceled_at'),
    latest_event_id = p_event.id, latest_event_at = p_event.created_at
  where s.organization_id = v_last.organization_id
    and s.id = v_last.id;
  return true;
end;
$$;

grant execute on function stripe.apply_next(stripe.webhook_events) to goldleaves_kernel;
