-- The timeline that subscriptions are (billing.subscription_phases): how a phase is added, and what is planned after it. Whoever changes one
-- holds the period lock alone: two that change the same organization come one after the other, and what is closed is closed before
-- or after. Nothing waits for a scheduler: a phase that was planned counts from its moment on by itself.

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

-- Takes the lock that every change is made under, tells of what has begun until now, and returns the moment of the change.
-- p_at: null is now. A moment that is past, for who brings subscriptions along from elsewhere, comes after the last change and lies in
-- a period that is not finalized.
create or replace function billing.begin_subscription_change(p_organization_id uuid, p_at timestamptz)
returns timestamptz
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_last timestamptz;
  v_now timestamptz;
  v_closed_until timestamptz;
begin
  perform billing.take_period_lock(p_organization_id);
  perform billing.announce_phases(p_organization_id);
  v_now := clock_timestamp();
  v_closed_until := billing.finalized_until(p_organization_id);
  select max(f.starts_at) into v_last
  from billing.subscription_phases f
  where f.organization_id = p_organization_id
    and f.starts_at <= v_now;
  if p_at is null then
    return greatest(v_now, v_last + interval '1 microsecond', v_closed_until);
  elsif not isfinite(p_at) or p_at > v_now then
    perform billing.raise_invalid_subscription(format('%s lies ahead; leave at out, or use at_period_end', p_at));
  elsif p_at < v_closed_until then
    perform billing.raise_locked(format('periods are finalized until %s, and a subscription cannot change before', v_closed_until));
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
  elsif billing.is_stripes(p_organization_id, v_phase.subscription_id) then
    raise exception using
      errcode = 'PT409',
      message = 'SUBSCRIPTION_AT_STRIPE: Stripe manages this subscription, and what is changed here would be lost with its next event',
      hint = 'Owners change it in the portal (GET /api/billing/portal_link), staff at Stripe.';
  end if;
  return v_phase;
end;
$$;

-- p_made_by: null is who asks for it.
create or replace function billing.add_phase(
  p_organization_id uuid, p_starts_at timestamptz, p_subscription_id uuid, p_status text, p_plan_code text,
  p_grace_ends_at timestamptz default null, p_reason text default null, p_made_by text default null
)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into billing.subscription_phases (
    organization_id, starts_at, subscription_id, status, plan_code, grace_ends_at, reason, made_by
  )
  values (
    p_organization_id, p_starts_at, p_subscription_id, p_status, p_plan_code, p_grace_ends_at, p_reason, coalesce(p_made_by, billing.author())
  )
$$;

-- When the time ends that a subscriber may count on: a trial with itself, else the billing period, which is made so that it stays.
create or replace function billing.subscription_period_end(p_phase billing.subscription_phases, p_at timestamptz)
returns timestamptz
language plpgsql
volatile
set search_path = ''
as $$
begin
  if p_phase.status = 'trialing' then
    return (
      select s.trial_end from billing.subscriptions s where s.organization_id = p_phase.organization_id and s.id = p_phase.subscription_id
    );
  end if;
  perform billing.ensure_periods(p_phase.organization_id, p_at, p_at);
  return (select f.period_end from billing.find_period(p_phase.organization_id, p_at) f);
end;
$$;

-- What was agreed for later than a moment, beside the end of a trial: another plan, and the end. Null where nothing was. A cancellation knows the
-- plan that was agreed, so that who takes it back has that, too.
create or replace function billing.agreed_ahead(
  p_phase billing.subscription_phases, p_at timestamptz,
  out change_at timestamptz, out change_plan text, out cancel_at timestamptz, out cancel_reason text
)
language plpgsql
stable
set search_path = ''
as $$
begin
  select f.starts_at, f.plan_code into change_at, change_plan
  from billing.subscription_phases f
  where f.organization_id = p_phase.organization_id
    and f.starts_at > p_at
    and f.plan_code <> p_phase.plan_code
  order by f.starts_at
  limit 1;
  select f.starts_at, f.reason into cancel_at, cancel_reason
  from billing.subscription_phases f
  where f.organization_id = p_phase.organization_id
    and f.starts_at > p_at
    and f.status = 'canceled';
end;
$$;

-- Why a trial ended in a pause. A payment method that comes later ends that pause, and no other.
create or replace function billing.trial_without_payment_method()
returns text
language sql
immutable
set search_path = ''
as $$ select 'trial ended without a payment method' $$;

-- The phases that follow from a phase and from what was agreed: the end of its trial, another plan, and the end. A reason says why a status is
-- what it is, so it stays where only the plan changes.
create or replace function billing.phases_ahead(
  p_phase billing.subscription_phases, p_change_at timestamptz, p_change_plan text, p_cancel_at timestamptz, p_cancel_reason text
)
returns table (starts_at timestamptz, status text, plan_code text, grace_ends_at timestamptz, reason text)
language sql
stable
set search_path = ''
as $$
  with trials as (
    select
      case when p_phase.status = 'trialing' then s.trial_end end as ends_at,
      case when s.has_payment_method then 'active' else 'paused' end as status_after,
      case when s.has_payment_method then 'trial ended' else billing.trial_without_payment_method() end as reason_after
    from billing.subscriptions s
    where s.organization_id = p_phase.organization_id
      and s.id = p_phase.subscription_id
  )
  select a.*
  from (
    select
      t.ends_at as starts_at, t.status_after, case when p_change_at <= t.ends_at then p_change_plan else p_phase.plan_code end,
      null::timestamptz, t.reason_after
    from trials t
    where t.ends_at is not null
    union all
    select
      p_change_at, case when p_change_at > t.ends_at then t.status_after else p_phase.status end, p_change_plan, p_phase.grace_ends_at,
      case
        when p_change_at > t.ends_at then t.reason_after
        when p_phase.status in ('trialing', 'active') then 'plan changed at period end'
        else p_phase.reason
      end
    from trials t
    where p_change_at is not null
      and p_change_at is distinct from t.ends_at
  ) as a
  where a.starts_at < coalesce(p_cancel_at, 'infinity')
  union all
  select
    p_cancel_at, 'canceled', case when p_change_at <= p_cancel_at then p_change_plan else p_phase.plan_code end, null,
    coalesce(p_cancel_reason, 'canceled at period end')
  where p_cancel_at is not null
$$;

-- Plans anew what follows a phase. Returns whether anything is other than before: what stays is not touched, and a cancellation stays that of
-- whoever planned it.
create or replace function billing.plan_ahead(
  p_phase billing.subscription_phases, p_change_at timestamptz, p_change_plan text, p_cancel_at timestamptz, p_cancel_reason text
)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_is_other boolean;
  v_canceled_by text := (
    select f.made_by
    from billing.subscription_phases f
    where f.organization_id = p_phase.organization_id
      and f.starts_at > p_phase.starts_at
      and f.status = 'canceled'
  );
begin
  delete from billing.subscription_phases f
  where f.organization_id = p_phase.organization_id
    and f.starts_at > p_phase.starts_at
    and not exists (
      select
      from billing.phases_ahead(p_phase, p_change_at, p_change_plan, p_cancel_at, p_cancel_reason) a
      where (a.starts_at, a.status, a.plan_code) = (f.starts_at, f.status, f.plan_code)
        and (a.grace_ends_at, a.reason) is not distinct from (f.grace_ends_at, f.reason)
        and f.subscription_id = p_phase.subscription_id
    );
  v_is_other := found;
  perform billing.add_phase(
    p_phase.organization_id, a.starts_at, p_phase.subscription_id, a.status, a.plan_code, a.grace_ends_at, a.reason,
    case when a.status = 'canceled' then v_canceled_by end
  )
  from (
    select p.*
    from billing.phases_ahead(p_phase, p_change_at, p_change_plan, p_cancel_at, p_cancel_reason) p
    where not exists (
      select from billing.subscription_phases f where f.organization_id = p_phase.organization_id and f.starts_at = p.starts_at
    )
    order by p.starts_at
  ) as a;
  return v_is_other or found;
end;
$$;

-- Adds a phase to a subscription that there is, keeps what is agreed for later, and tells of it. Another plan takes the place of one that was
-- agreed, and the end that of everything.
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
  v_agreed record;
  v_phase billing.subscription_phases;
begin
  select * into v_agreed from billing.agreed_ahead(p_before, p_at);
  if p_plan_code <> p_before.plan_code or p_status = 'canceled' then
    v_agreed.change_at := null;
    v_agreed.change_plan := null;
  end if;
  if p_status = 'canceled' then
    v_agreed.cancel_at := null;
  end if;
  perform billing.add_phase(p_before.organization_id, p_at, p_before.subscription_id, p_status, p_plan_code, p_grace_ends_at, p_reason);
  select * into strict v_phase from billing.phase_at(p_before.organization_id, p_at);
  perform billing.plan_ahead(v_phase, v_agreed.change_at, v_agreed.change_plan, v_agreed.cancel_at, v_agreed.cancel_reason);
  perform billing.announce_phases(p_before.organization_id);
end;
$$;

grant execute on function
  billing.raise_no_subscription(), billing.raise_invalid_subscription(text), billing.begin_subscription_change(uuid, timestamptz),
  billing.live_phase(uuid, timestamptz), billing.add_phase(uuid, timestamptz, uuid, text, text, timestamptz, text, text),
  billing.subscription_period_end(billing.subscription_phases, timestamptz), billing.agreed_ahead(billing.subscription_phases, timestamptz),
  billing.trial_without_payment_method(), billing.phases_ahead(billing.subscription_phases, timestamptz, text, timestamptz, text),
  billing.plan_ahead(billing.subscription_phases, timestamptz, text, timestamptz, text),
  billing.enter_phase(billing.subscription_phases, timestamptz, text, text, timestamptz, text) to goldleaves_kernel;
