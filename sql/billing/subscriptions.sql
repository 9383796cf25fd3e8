-- Subscriptions: start, change of plan, cancel, resume, pause, and what payments make of them. Each writes phases
-- (billing.subscription_phases) under the period lock, alone: two that change the same organization come one after the other, and what is
-- closed is closed before or after. Nothing waits for a scheduler: a phase that was planned counts from its moment on by itself.
--
-- p_at: null is now. A moment that is past, for who brings subscriptions along from elsewhere, comes after the last change and lies in
-- a period that is not finalized.

create or replace function billing.raise_no_subscription()
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT404',
    message = 'NO_SUBSCRIPTION: the organization has no subscription, or it was canceled',
    hint = 'Staff starts one with start_subscription.';
end;
$$;

create or replace function billing.raise_invalid_subscription(p_problem text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT400',
    message = 'INVALID_SUBSCRIPTION: ' || p_problem,
    hint = 'GET /billing_subscriptions shows what there is.';
end;
$$;

-- Takes the lock that every change is made under, and returns the moment of the change.
create or replace function billing.begin_subscription_change(p_organization_id uuid, p_at timestamptz)
returns timestamptz
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_last timestamptz;
  v_now timestamptz;
begin
  perform billing.take_period_lock(p_organization_id);
  v_now := clock_timestamp();
  select max(f.starts_at) into v_last
  from billing.subscription_phases f
  where f.organization_id = p_organization_id
    and f.starts_at <= v_now;
  if p_at is null then
    return greatest(v_now, v_last + interval '1 microsecond', billing.finalized_until(p_organization_id));
  elsif not isfinite(p_at) or p_at > v_now then
    perform billing.raise_invalid_subscription(format('%s lies ahead; leave at out, or use at_period_end', p_at));
  elsif p_at < billing.finalized_until(p_organization_id) then
    perform billing.raise_locked(
      format('periods are finalized until %s, and a subscription cannot change before', billing.finalized_until(p_organization_id))
    );
  elsif p_at <= v_last and isfinite(v_last) then
    raise exception using
      errcode = 'PT409',
      message = format('SUBSCRIPTION_CHANGED: it changed at %s, and a change before that would rewrite it', v_last),
      hint = 'Leave at out, or take a later moment.';
  end if;
  return p_at;
end;
$$;

-- The phase of the subscription that there is at a moment: not of one that was canceled, and not of a plan without one.
create or replace function billing.live_phase(p_organization_id uuid, p_at timestamptz)
returns billing.subscription_phases
language plpgsql
stable
set search_path = ''
as $$
declare
  v_phase billing.subscription_phases;
begin
  select * into v_phase from billing.phase_at(p_organization_id, p_at);
  if v_phase.subscription_id is null or v_phase.status = 'canceled' then
    perform billing.raise_no_subscription();
  end if;
  return v_phase;
end;
$$;

create or replace function billing.add_phase(
  p_organization_id uuid, p_starts_at timestamptz, p_subscription_id uuid, p_status text, p_plan_code text,
  p_grace_ends_at timestamptz default null, p_reason text default null
)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into billing.subscription_phases (
    organization_id, starts_at, subscription_id, status, plan_code, grace_ends_at, reason, made_by
  )
  values (p_organization_id, p_starts_at, p_subscription_id, p_status, p_plan_code, p_grace_ends_at, p_reason, billing.author())
$$;

-- Plans what follows a phase anew: the end of its trial, or the cancellation that is agreed (null: none).
create or replace function billing.plan_ahead(p_phase billing.subscription_phases, p_cancel_at timestamptz)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_subscription billing.subscriptions;
begin
  delete from billing.subscription_phases f
  where f.organization_id = p_phase.organization_id
    and f.starts_at > p_phase.starts_at
    and f.starts_at > clock_timestamp();
  select * into strict v_subscription
  from billing.subscriptions s
  where s.organization_id = p_phase.organization_id
    and s.id = p_phase.subscription_id;
  if p_phase.status = 'trialing' and v_subscription.trial_end < coalesce(p_cancel_at, 'infinity') then
    perform billing.add_phase(
      p_phase.organization_id, v_subscription.trial_end, p_phase.subscription_id,
      case when v_subscription.has_payment_method then 'active' else 'paused' end, p_phase.plan_code,
      p_reason => case when v_subscription.has_payment_method then 'trial ended' else 'trial ended without a payment method' end
    );
  end if;
  if p_cancel_at is not null then
    perform billing.add_phase(
      p_phase.organization_id, p_cancel_at, p_phase.subscription_id, 'canceled', p_phase.plan_code, p_reason => 'canceled at period end'
    );
  end if;
end;
$$;

-- When the cancellation that is planned comes; null: none is.
create or replace function billing.planned_cancellation(p_organization_id uuid)
returns timestamptz
language sql
stable
set search_path = ''
as $$
  select min(f.starts_at)
  from billing.subscription_phases f
  where f.organization_id = p_organization_id
    and f.starts_at > clock_timestamp()
    and f.status = 'canceled'
$$;

-- Adds a phase to a subscription that there is, keeps what is agreed for later, and tells of it.
create or replace function billing.enter_phase(
  p_before billing.subscription_phases, p_at timestamptz, p_status text, p_plan_code text, p_grace_ends_at timestamptz default null,
  p_reason text default null
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_cancel_at timestamptz := billing.planned_cancellation(p_before.organization_id);
  v_phase billing.subscription_phases;
begin
  perform billing.add_phase(p_before.organization_id, p_at, p_before.subscription_id, p_status, p_plan_code, p_grace_ends_at, p_reason);
  select * into strict v_phase from billing.phase_at(p_before.organization_id, p_at);
  perform billing.plan_ahead(v_phase, case when p_status <> 'canceled' then v_cancel_at end);
  perform billing.announce_phases(p_before.organization_id);
end;
$$;

create or replace function billing.start_subscription(
  p_organization_id uuid, p_plan_code text, p_trial_days integer, p_has_payment_method boolean, p_at timestamptz
)
returns uuid
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_at timestamptz;
  v_organization tenancy.organizations;
  v_subscription_id uuid := ops.new_id();
  v_before billing.subscription_phases;
  v_phase billing.subscription_phases;
  v_base timestamptz;
  v_trial_days integer := p_trial_days;
  v_has_payment_method boolean := coalesce(p_has_payment_method, false);
begin
  if not exists (select from billing.plans l where l.code = p_plan_code) then
    perform billing.raise_no_plan(p_plan_code);
  elsif p_trial_days not between 0 and 365 then
    perform billing.raise_invalid_subscription(format('a trial has 0 to 365 days, not %s', p_trial_days));
  end if;
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  select * into v_organization from tenancy.organizations o where o.id = p_organization_id and o.kind <> 'platform';
  if not found then
    perform billing.raise_no_organization(p_organization_id);
  end if;
  select * into v_before from billing.phase_at(p_organization_id, v_at);
  if v_before.subscription_id is not null and v_before.status <> 'canceled' then
    raise exception using
      errcode = 'PT409',
      message = format('SUBSCRIPTION_EXISTS: the organization has a subscription to %s, which is %s', v_before.plan_code, v_before.status),
      hint = 'Change it with change_subscription, or cancel it first.';
  end if;

  -- The second one has no trial, unless staff says so.
  v_trial_days := coalesce(
    p_trial_days,
    case
      when exists (select from billing.subscriptions s where s.organization_id = p_organization_id and s.trial_end is not null) then 0
      else (select d.trial_days from billing.defaults d)
    end
  );
  insert into billing.subscriptions (organization_id, id, trial_end, has_payment_method, created_by)
  values (
    p_organization_id, v_subscription_id, case when v_trial_days > 0 then v_at + make_interval(days => v_trial_days) end, v_has_payment_method,
    billing.author()
  );

  -- What lies before the first phase keeps the plan that the organization had.
  v_base := coalesce(billing.finalized_until(p_organization_id), '-infinity');
  if v_before.organization_id is null and v_base < v_at then
    insert into billing.subscription_phases (organization_id, starts_at, status, plan_code, made_by, announced_at)
    values (p_organization_id, v_base, 'active', v_organization.plan, billing.author(), clock_timestamp());
  end if;
  perform billing.add_phase(
    p_organization_id, v_at, v_subscription_id,
    case when v_trial_days > 0 then 'trialing' when v_has_payment_method then 'active' else 'incomplete' end, p_plan_code
  );
  select * into strict v_phase from billing.phase_at(p_organization_id, v_at);
  perform billing.plan_ahead(v_phase, null);
  -- So that it is billed although nothing is ever used.
  perform billing.ensure_periods(p_organization_id, v_at, v_at);
  perform billing.announce_phases(p_organization_id);
  return v_subscription_id;
end;
$$;

-- p_at_period_end: the plan of now counts until then.
create or replace function billing.change_subscription(
  p_organization_id uuid, p_plan_code text, p_at_period_end boolean, p_at timestamptz
)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz;
  v_now billing.subscription_phases;
  v_next timestamptz;
  v_cancel_at timestamptz;
begin
  if not exists (select from billing.plans l where l.code = p_plan_code) then
    perform billing.raise_no_plan(p_plan_code);
  elsif p_at_period_end and p_at is not null then
    perform billing.raise_invalid_subscription('it changes at a moment or at the end of the period, not both');
  end if;
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  v_now := billing.live_phase(p_organization_id, v_at);
  v_cancel_at := billing.planned_cancellation(p_organization_id);

  if not coalesce(p_at_period_end, false) then
    -- A change that was planned for later is off, too.
    if v_now.plan_code = p_plan_code then
      perform billing.plan_ahead(v_now, v_cancel_at);
      perform billing.tell_subscription(p_organization_id);
    else
      perform billing.enter_phase(v_now, v_at, v_now.status, p_plan_code, v_now.grace_ends_at, 'plan changed');
    end if;
    return;
  end if;

  v_next := billing.subscription_period_end(v_now);
  if v_cancel_at <= v_next then
    raise exception using
      errcode = 'PT409',
      message = format('SUBSCRIPTION_ENDING: it is canceled at %s', v_cancel_at),
      hint = 'Take that back with resume_subscription first.';
  end if;
  perform billing.plan_ahead(v_now, v_cancel_at);
  if v_now.plan_code <> p_plan_code then
    -- In place of the end of a trial, if that is when.
    delete from billing.subscription_phases f where f.organization_id = p_organization_id and f.starts_at = v_next;
    perform billing.add_phase(
      p_organization_id, v_next, v_now.subscription_id,
      case
        when v_now.status <> 'trialing' then v_now.status
        when (select s.has_payment_method from billing.subscriptions s where s.organization_id = p_organization_id and s.id = v_now.subscription_id)
          then 'active'
        else 'paused'
      end,
      p_plan_code, v_now.grace_ends_at, 'plan changed at period end'
    );
  end if;
  perform billing.tell_subscription(p_organization_id);
end;
$$;

-- When what a subscriber has paid for ends: a trial with itself, else the billing period.
create or replace function billing.subscription_period_end(p_phase billing.subscription_phases)
returns timestamptz
language sql
stable
set search_path = ''
as $$
  select case p_phase.status
    when 'trialing' then (
      select s.trial_end from billing.subscriptions s where s.organization_id = p_phase.organization_id and s.id = p_phase.subscription_id
    )
    else (select f.period_end from billing.find_period(p_phase.organization_id, greatest(p_phase.starts_at, clock_timestamp())) f)
  end
$$;

create or replace function billing.cancel_subscription(p_organization_id uuid, p_at_period_end boolean, p_reason text, p_at timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz;
  v_now billing.subscription_phases;
begin
  if p_at_period_end and p_at is not null then
    perform billing.raise_invalid_subscription('it ends at a moment or at the end of the period, not both');
  elsif length(btrim(p_reason)) not between 1 and 200 then
    perform billing.raise_invalid_subscription('a reason has 1 to 200 characters');
  end if;
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  v_now := billing.live_phase(p_organization_id, v_at);
  if not p_at_period_end then
    perform billing.enter_phase(v_now, v_at, 'canceled', v_now.plan_code, p_reason => coalesce(p_reason, 'canceled'));
  elsif billing.planned_cancellation(p_organization_id) is null then
    perform billing.plan_ahead(v_now, billing.subscription_period_end(v_now));
    perform billing.tell_subscription(p_organization_id);
  end if;
end;
$$;

-- Takes back a cancellation that is planned, or begins again what was paused, is past due or incomplete.
create or replace function billing.resume_subscription(p_organization_id uuid, p_at timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz := billing.begin_subscription_change(p_organization_id, p_at);
  v_now billing.subscription_phases := billing.live_phase(p_organization_id, v_at);
begin
  if v_now.status in ('paused', 'incomplete') and not (
    select s.has_payment_method from billing.subscriptions s where s.organization_id = p_organization_id and s.id = v_now.subscription_id
  ) then
    raise exception using
      errcode = 'PT409',
      message = format('PAYMENT_METHOD_REQUIRED: the subscription is %s, and there is nothing to charge', v_now.status),
      hint = 'Say that there is with set_payment_method.';
  end if;
  perform billing.plan_ahead(v_now, null);
  if v_now.status in ('paused', 'incomplete', 'past_due') then
    perform billing.enter_phase(v_now, v_at, 'active', v_now.plan_code, p_reason => 'resumed');
  else
    perform billing.tell_subscription(p_organization_id);
  end if;
end;
$$;

create or replace function billing.pause_subscription(p_organization_id uuid, p_at timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz := billing.begin_subscription_change(p_organization_id, p_at);
  v_now billing.subscription_phases := billing.live_phase(p_organization_id, v_at);
begin
  if v_now.status not in ('paused', 'incomplete') then
    perform billing.enter_phase(v_now, v_at, 'paused', v_now.plan_code, p_reason => 'paused');
  end if;
end;
$$;

-- A payment failed. Twice does not extend the grace. p_grace_days: null is PAST_DUE_GRACE_DAYS.
create or replace function billing.mark_past_due(p_organization_id uuid, p_grace_days integer, p_at timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_at timestamptz;
  v_now billing.subscription_phases;
begin
  if p_grace_days not between 0 and 365 then
    perform billing.raise_invalid_subscription(format('a grace has 0 to 365 days, not %s', p_grace_days));
  end if;
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  v_now := billing.live_phase(p_organization_id, v_at);
  if v_now.status = 'past_due' then
    return;
  elsif v_now.status <> 'active' then
    raise exception using
      errcode = 'PT409',
      message = format('SUBSCRIPTION_NOT_ACTIVE: it is %s, and only who is active becomes past due', v_now.status),
      hint = 'GET /billing_subscriptions shows it.';
  end if;
  perform billing.enter_phase(
    v_now, v_at, 'past_due', v_now.plan_code,
    v_at + make_interval(days => coalesce(p_grace_days, (select d.past_due_grace_days from billing.defaults d))), 'payment failed'
  );
end;
$$;

-- With one a trial goes on as active when it ends, and what waited for it begins.
create or replace function billing.set_payment_method(p_organization_id uuid, p_has_payment_method boolean)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz := billing.begin_subscription_change(p_organization_id, null);
  v_now billing.subscription_phases := billing.live_phase(p_organization_id, v_at);
begin
  if p_has_payment_method is null then
    perform billing.raise_invalid_subscription('has_payment_method is true or false');
  end if;
  update billing.subscriptions s
  set has_payment_method = p_has_payment_method
  where s.organization_id = p_organization_id
    and s.id = v_now.subscription_id
    and s.has_payment_method <> p_has_payment_method;
  if not found then
    return;
  elsif p_has_payment_method
    and (v_now.status = 'incomplete' or v_now.status = 'paused' and v_now.reason = 'trial ended without a payment method')
  then
    perform billing.enter_phase(v_now, v_at, 'active', v_now.plan_code, p_reason => 'payment method added');
  else
    if v_now.status = 'trialing' then
      perform billing.plan_ahead(v_now, billing.planned_cancellation(p_organization_id));
    end if;
    perform billing.tell_subscription(p_organization_id);
  end if;
end;
$$;

-- Tells of phases that have begun: the organization's plan is what it says from now on, and the provider's application gets a message.
create or replace function billing.announce_phases(p_organization_id uuid)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  update billing.subscription_phases f
  set announced_at = v_now
  where f.organization_id = p_organization_id
    and f.starts_at <= v_now
    and f.announced_at is null;
  if not found then
    return;
  end if;
  update tenancy.organizations o
  set plan = f.plan_code
  from billing.phase_at(p_organization_id, v_now) f
  where o.id = p_organization_id
    and o.plan <> f.plan_code;
  perform billing.tell_subscription(p_organization_id);
end;
$$;

-- What the provider's application is told, as the view billing_subscriptions shows it.
create or replace function billing.tell_subscription(p_organization_id uuid)
returns void
language sql
volatile
set search_path = ''
set timezone = 'UTC'
as $$
  select notifications.enqueue_webhook(
    p_organization_id, 'subscription.changed',
    jsonb_build_object(
      'organization_id', f.organization_id, 'subscription_id', f.subscription_id, 'plan', f.plan_code, 'status', f.status,
      'since', f.starts_at, 'reason', f.reason, 'trial_end', s.trial_end, 'grace_ends_at', f.grace_ends_at,
      'has_payment_method', s.has_payment_method, 'cancel_at', billing.planned_cancellation(p_organization_id),
      'previous', case when p.organization_id is not null then jsonb_build_object('plan', p.plan_code, 'status', p.status) end,
      'next', case
        when n.organization_id is not null then jsonb_build_object('plan', n.plan_code, 'status', n.status, 'since', n.starts_at)
      end
    )
  )
  from billing.phase_at(p_organization_id, clock_timestamp()) f
  join billing.subscriptions s on s.organization_id = f.organization_id and s.id = f.subscription_id
  left join lateral (
    select b.*
    from billing.subscription_phases b
    where b.organization_id = f.organization_id
      and b.subscription_id = f.subscription_id
      and b.starts_at < f.starts_at
    order by b.starts_at desc
    limit 1
  ) as p on true
  left join lateral (
    select a.*
    from billing.subscription_phases a
    where a.organization_id = f.organization_id
      and a.starts_at > f.starts_at
    order by a.starts_at
    limit 1
  ) as n on true
$$;

-- For the sidecar: tells of what time alone has begun, such as the end of a trial. Any number of sidecars may call it at once. Returns of how
-- many organizations.
create or replace function billing.advance_subscriptions(p_most integer)
returns integer
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_organization_id uuid;
  v_done integer := 0;
begin
  for v_organization_id in
    select f.organization_id
    from billing.subscription_phases f
    where f.announced_at is null
      and f.starts_at <= clock_timestamp()
    order by f.starts_at
    limit p_most
    for no key update skip locked
  loop
    perform billing.announce_phases(v_organization_id);
    v_done := v_done + 1;
  end loop;
  return v_done;
end;
$$;

alter function billing.start_subscription(uuid, text, integer, boolean, timestamptz) owner to goldleaves_kernel;
alter function billing.change_subscription(uuid, text, boolean, timestamptz) owner to goldleaves_kernel;
alter function billing.cancel_subscription(uuid, boolean, text, timestamptz) owner to goldleaves_kernel;
alter function billing.resume_subscription(uuid, timestamptz) owner to goldleaves_kernel;
alter function billing.pause_subscription(uuid, timestamptz) owner to goldleaves_kernel;
alter function billing.mark_past_due(uuid, integer, timestamptz) owner to goldleaves_kernel;
alter function billing.set_payment_method(uuid, boolean) owner to goldleaves_kernel;
alter function billing.advance_subscriptions(integer) owner to goldleaves_kernel;
grant execute on function
  billing.raise_no_subscription(), billing.raise_invalid_subscription(text), billing.begin_subscription_change(uuid, timestamptz),
  billing.live_phase(uuid, timestamptz), billing.add_phase(uuid, timestamptz, uuid, text, text, timestamptz, text),
  billing.plan_ahead(billing.subscription_phases, timestamptz), billing.planned_cancellation(uuid),
  billing.enter_phase(billing.subscription_phases, timestamptz, text, text, timestamptz, text),
  billing.subscription_period_end(billing.subscription_phases), billing.announce_phases(uuid), billing.tell_subscription(uuid)
  to goldleaves_kernel;
grant execute on function
  billing.start_subscription(uuid, text, integer, boolean, timestamptz), billing.change_subscription(uuid, text, boolean, timestamptz),
  billing.cancel_subscription(uuid, boolean, text, timestamptz), billing.resume_subscription(uuid, timestamptz),
  billing.pause_subscription(uuid, timestamptz), billing.mark_past_due(uuid, integer, timestamptz),
  billing.set_payment_method(uuid, boolean) to platform_admin;
grant execute on function billing.advance_subscriptions(integer) to sidecar;
