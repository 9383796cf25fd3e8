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

-- What somebody is told when it changes, of a subscription: not since when it is so, nor why.
create or replace function stripe.told_of(p_organization_id uuid)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object(
    'id', s.id, 'plan', s.plan, 'status', s.status, 'trial_end', s.trial_end, 'grace_ends_at', s.grace_ends_at,
    'has_payment_method', s.has_payment_method, 'cancel_at', s.cancel_at, 'next_plan', s.next_plan, 'next_plan_at', s.next_plan_at
  )
  from billing.subscription_of(p_organization_id) s
$$;

-- Returns whether the timeline is another one than before. It is told when what there is now is, and not when only the past is better known.
create or replace function stripe.renew_timeline(p_organization_id uuid, p_waits boolean)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_now timestamptz;
  v_told jsonb;
begin
  perform stripe.lock_timeline(p_organization_id, p_waits);
  -- What time alone has begun until now is told as that.
  perform billing.announce_phases(p_organization_id);
  v_told := stripe.told_of(p_organization_id);
  if not stripe.renew_phases(p_organization_id) then
    return false;
  end if;
  v_now := clock_timestamp();
  update tenancy.organizations o
  set plan = f.plan_code
  from billing.phase_at(p_organization_id, v_now) f
  where o.id = p_organization_id
    and o.plan <> f.plan_code;
  if stripe.told_of(p_organization_id) is distinct from v_told then
    perform billing.tell_subscription(p_organization_id);
  end if;
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
  elsif stripe.apply_next(p_event) then
    outcome := 'applied';
    message := coalesce(p_event.facts ->> 'status', 'applied');
    return;
  end if;
  select
    (array_agg(t.event_id order by t.n desc))[1] as last_id,
    (array_agg(t.facts order by t.n desc))[1] as facts,
    stripe.telling_facts((array_agg(t.facts order by t.n desc))[1])
      is distinct from stripe.telling_facts((array_agg(t.facts order by t.n desc))[2]) as is_telling,
    bool_or(t.is_tied) filter (where t.event_id = p_event.id) as is_tied
  into v_states
  from stripe.subscription_states(p_event.subscription_id) t
  where t.event_id is not null;

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

  -- What can be told of it counts. It is tried again until somebody has said what is missing.
  if v_states.last_id = p_event.id then
    begin
      perform stripe.require_known(v_states.facts);
    exception when sqlstate 'PT409' then
      outcome := 'pending';
      message := sqlerrm;
    end;
  end if;
  if p_event.type = 'customer.subscription.trial_will_end' and stripe.is_news(p_event.id) then
    perform notifications.enqueue_webhook(
      v_organization_id, 'subscription.trial_will_end',
      jsonb_build_object(
        'organization_id', v_organization_id, 'subscription_id', stripe.uuid_of(p_event.subscription_id),
        'trial_end', metering.time_text(stripe.time_in(p_event.facts -> 'trial_end')),
        'has_payment_method', coalesce(
          (
            select s.has_payment_method
            from billing.subscriptions s
            where s.organization_id = v_organization_id
              and s.id = stripe.uuid_of(p_event.subscription_id)
          ),
          false
        )
      )
    );
  end if;
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
  select p_object_type, p_object_id
  where p_object_id is not null
  on conflict (object_type, object_id) do update
  set asked = r.asked + 1, attempts = 0, next_attempt_at = clock_timestamp()
$$;

grant execute on function stripe.lock_timeline(uuid, boolean), stripe.telling_facts(jsonb), stripe.told_of(uuid), stripe.renew_timeline(uuid, boolean),
  stripe.apply_subscription(stripe.webhook_events, boolean), stripe.ask_for(text, text) to goldleaves_kernel;
