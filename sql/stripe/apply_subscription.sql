-- What an event of a subscription does: the timeline of the organization follows, and view billing_subscriptions with it.

-- The period lock, under which a timeline changes. Who applies one of many does not wait for who closes a period: it is then applied by itself.
create or replace function stripe.lock_timeline(p_organization_id uuid, p_waits boolean)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  if p_waits then
    perform billing.take_period_lock(p_organization_id);
  elsif not pg_try_advisory_xact_lock(billing.period_lock_class(), billing.period_lock_slot(p_organization_id)) then
    raise lock_not_available using message = 'a period of the organization is being closed, or usage recorded';
  end if;
end;
$$;

-- What of the facts of a subscription its phases follow from.
create or replace function stripe.telling_facts(p_facts jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$
  select stripe.picked(p_facts, '{status,trial_end,cancel_at,cancel_at_period_end,ended_at,prices,has_payment_method,without_payment_method}')
    || case when (p_facts ->> 'cancel_at_period_end')::boolean then stripe.picked(p_facts, '{current_period_end}') else '{}' end
$$;

-- Returns whether the timeline is another one than before.
create or replace function stripe.renew_timeline(p_organization_id uuid, p_waits boolean)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  perform stripe.lock_timeline(p_organization_id, p_waits);
  if not stripe.renew_phases(p_organization_id) then
    return false;
  end if;
  perform billing.announce_phases(p_organization_id);
  -- So that it is billed although nothing is ever used.
  perform billing.ensure_periods(p_organization_id, v_now, v_now);
  return true;
end;
$$;

create or replace function stripe.apply_subscription(p_event stripe.webhook_events, p_waits boolean, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_organization_id uuid := stripe.organization_of(p_event.customer_id);
  v_states record;
begin
  if v_organization_id is null then
    outcome := 'unlinked';
    message := format('customer %s is no organization''s yet', coalesce(p_event.customer_id, '(none)'));
    return;
  end if;
  select
    max(t.event_id) filter (where t.n = l.n) as last_id,
    bool_or(t.is_tied and t.event_id = p_event.id) as is_tied,
    count(distinct stripe.telling_facts(t.facts)) filter (where t.n >= l.n_before) > 1 or l.n_before is null as is_telling
  into v_states
  from stripe.subscription_states(p_event.subscription_id) t
  cross join lateral (
    select max(s.n) as n, (array_agg(s.n order by s.n desc))[2] as n_before from stripe.subscription_states(p_event.subscription_id) s
  ) as l
  group by l.n_before;

  outcome := case when v_states.last_id = p_event.id then 'applied' else 'stale' end;
  -- The last one that says nothing new of what phases follow from, as most do.
  if outcome = 'stale' or v_states.is_telling then
    if stripe.renew_timeline(v_organization_id, p_waits) then
      outcome := 'applied';
    end if;
  end if;
  perform stripe.mirror_subscription(v_organization_id, p_event.customer_id, p_event.subscription_id, p_event.is_live);
  if v_states.is_tied then
    perform stripe.ask_for('subscription', p_event.subscription_id);
  end if;
  message := case outcome when 'stale' then 'a later event was applied before' else coalesce(p_event.facts ->> 'status', 'applied') end;
end;
$$;

-- Has the sidecar fetch an object from Stripe, if it has a key.
create or replace function stripe.ask_for(p_object_type text, p_object_id text)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into stripe.refetches as r (object_type, object_id)
  values (p_object_type, p_object_id)
  on conflict (object_type, object_id) do update
  set asked = r.asked + 1, attempts = 0, next_attempt_at = clock_timestamp()
$$;

grant execute on function stripe.lock_timeline(uuid, boolean), stripe.telling_facts(jsonb), stripe.renew_timeline(uuid, boolean),
  stripe.apply_subscription(stripe.webhook_events, boolean), stripe.ask_for(text, text) to goldleaves_kernel;
