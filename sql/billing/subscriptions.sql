-- Subscriptions: start, change of plan, cancel, resume, pause, and what payments make of them. Each locks, looks at the phase of its moment and
-- adds the next one (sql/billing/subscription_timeline.sql). Called again, each finds what it was to do done, and does and tells nothing.

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
  elsif p_organization_id = audit.platform() then
    perform billing.raise_invalid_subscription('the platform is who provides, and subscribes to nothing');
  end if;
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  select * into v_organization from tenancy.organizations o where o.id = p_organization_id;
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

  -- A second subscription has none, unless staff says so.
  v_trial_days := coalesce(
    p_trial_days,
    case
      when exists (select from billing.subscriptions s where s.organization_id = p_organization_id) then 0
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
    case when v_trial_days > 0 then 'trialing' when v_has_payment_method then 'active' else 'incomplete' end, p_plan_code, p_reason => 'started'
  );
  select * into strict v_phase from billing.phase_at(p_organization_id, v_at);
  perform billing.plan_ahead(v_phase, null, null, null, null);
  -- The organization's row before its periods, as whoever changes its schedule locks them.
  perform billing.announce_phases(p_organization_id);
  -- So that it is billed although nothing is ever used.
  perform billing.ensure_periods(p_organization_id, v_at, v_at);
  return v_subscription_id;
end;
$$;

-- A change that was agreed for later is off, too: the last word counts. p_at_period_end: the plan of now counts until then.
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
  v_agreed record;
  v_change_at timestamptz;
begin
  if not exists (select from billing.plans l where l.code = p_plan_code) then
    perform billing.raise_no_plan(p_plan_code);
  elsif p_at_period_end and p_at is not null then
    perform billing.raise_invalid_subscription('it changes at a moment or at the end of the period, not both');
  end if;
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  v_now := billing.live_phase(p_organization_id, v_at);
  select * into v_agreed from billing.agreed_ahead(v_now, v_at);

  if v_now.plan_code <> p_plan_code and coalesce(p_at_period_end, false) then
    v_change_at := billing.subscription_period_end(v_now, v_at);
    if v_agreed.cancel_at <= v_change_at then
      raise exception using
        errcode = 'PT409',
        message = format('SUBSCRIPTION_ENDING: it is canceled at %s', v_agreed.cancel_at),
        hint = 'Take that back with resume_subscription first.';
    end if;
  elsif v_now.plan_code <> p_plan_code then
    perform billing.enter_phase(
      v_now, v_at, v_now.status, p_plan_code, v_now.grace_ends_at,
      case when v_now.status in ('trialing', 'active') then 'plan changed' else v_now.reason end
    );
    return;
  end if;
  if billing.plan_ahead(
    v_now, v_change_at, case when v_change_at is not null then p_plan_code end, v_agreed.cancel_at, v_agreed.cancel_reason
  ) then
    perform billing.tell_subscription(p_organization_id);
  end if;
end;
$$;

-- At the end of the period: what was agreed first stays, with its reason.
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
  v_agreed record;
  v_at_period_end boolean := coalesce(p_at_period_end, true);
begin
  if v_at_period_end and p_at is not null then
    perform billing.raise_invalid_subscription('it ends at a moment or at the end of the period, not both; send at_period_end false with at');
  elsif length(btrim(p_reason)) not between 1 and 200 then
    perform billing.raise_invalid_subscription('a reason has 1 to 200 characters');
  end if;
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  v_now := billing.live_phase(p_organization_id, v_at);
  if not v_at_period_end then
    perform billing.enter_phase(v_now, v_at, 'canceled', v_now.plan_code, p_reason => coalesce(btrim(p_reason), 'canceled'));
    return;
  end if;
  select * into v_agreed from billing.agreed_ahead(v_now, v_at);
  if v_agreed.cancel_at is null
    and billing.plan_ahead(
      v_now, v_agreed.change_at, v_agreed.change_plan, billing.subscription_period_end(v_now, v_at), btrim(p_reason)
    )
  then
    perform billing.tell_subscription(p_organization_id);
  end if;
end;
$$;

-- It goes on: without the cancellation that is planned, and where it stands still, from now on. A trial that was paused goes on until its end.
create or replace function billing.resume_subscription(p_organization_id uuid, p_at timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz;
  v_now billing.subscription_phases;
  v_agreed record;
  v_subscription billing.subscriptions;
  v_is_trial boolean;
  v_is_kept boolean;
begin
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  v_now := billing.live_phase(p_organization_id, v_at);
  select * into strict v_subscription
  from billing.subscriptions s
  where s.organization_id = p_organization_id
    and s.id = v_now.subscription_id;
  v_is_trial := v_now.status = 'paused' and coalesce(v_subscription.trial_end > v_at, false);
  if v_now.status in ('paused', 'incomplete') and not v_is_trial and not v_subscription.has_payment_method then
    raise exception using
      errcode = 'PT409',
      message = format('PAYMENT_METHOD_REQUIRED: the subscription is %s, and there is nothing to charge', v_now.status),
      hint = 'Say that there is with set_payment_method.';
  end if;
  select * into v_agreed from billing.agreed_ahead(v_now, v_at);
  v_is_kept := billing.plan_ahead(v_now, v_agreed.change_at, v_agreed.change_plan, null, null);
  if v_now.status in ('paused', 'incomplete', 'past_due') then
    perform billing.enter_phase(
      v_now, v_at, case when v_is_trial then 'trialing' else 'active' end, v_now.plan_code, p_reason => 'resumed'
    );
  elsif v_is_kept then
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
  v_at timestamptz;
  v_now billing.subscription_phases;
begin
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  v_now := billing.live_phase(p_organization_id, v_at);
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
    perform billing.raise_not_active(v_now.status);
  end if;
  perform billing.enter_phase(
    v_now, v_at, 'past_due', v_now.plan_code,
    v_at + make_interval(days => coalesce(p_grace_days, (select d.past_due_grace_days from billing.defaults d))), 'payment failed'
  );
end;
$$;

-- The payment that had failed came. Other than resume_subscription it takes nothing back that was agreed: who has canceled stays canceled.
create or replace function billing.mark_paid(p_organization_id uuid, p_at timestamptz)
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
  v_at := billing.begin_subscription_change(p_organization_id, p_at);
  v_now := billing.live_phase(p_organization_id, v_at);
  if v_now.status in ('past_due', 'incomplete') then
    perform billing.enter_phase(v_now, v_at, 'active', v_now.plan_code, p_reason => 'paid');
  elsif v_now.status <> 'active' then
    perform billing.raise_not_active(v_now.status);
  end if;
end;
$$;

create or replace function billing.raise_not_active(p_status text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('SUBSCRIPTION_NOT_ACTIVE: it is %s, and no payment is due', p_status),
    hint = 'GET /billing_subscriptions shows it.';
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
  v_at timestamptz;
  v_now billing.subscription_phases;
  v_agreed record;
begin
  if p_has_payment_method is null then
    perform billing.raise_invalid_subscription('has_payment_method is true or false');
  end if;
  v_at := billing.begin_subscription_change(p_organization_id, null);
  v_now := billing.live_phase(p_organization_id, v_at);
  update billing.subscriptions s
  set has_payment_method = p_has_payment_method
  where s.organization_id = p_organization_id
    and s.id = v_now.subscription_id
    and s.has_payment_method <> p_has_payment_method;
  if not found then
    return;
  elsif p_has_payment_method
    and (v_now.status = 'incomplete' or v_now.status = 'paused' and v_now.reason = billing.trial_without_payment_method())
  then
    perform billing.enter_phase(v_now, v_at, 'active', v_now.plan_code, p_reason => 'payment method added');
    return;
  end if;
  select * into v_agreed from billing.agreed_ahead(v_now, v_at);
  perform billing.plan_ahead(v_now, v_agreed.change_at, v_agreed.change_plan, v_agreed.cancel_at, v_agreed.cancel_reason);
  perform billing.tell_subscription(p_organization_id);
end;
$$;

alter function billing.start_subscription(uuid, text, integer, boolean, timestamptz) owner to goldleaves_kernel;
alter function billing.change_subscription(uuid, text, boolean, timestamptz) owner to goldleaves_kernel;
alter function billing.cancel_subscription(uuid, boolean, text, timestamptz) owner to goldleaves_kernel;
alter function billing.resume_subscription(uuid, timestamptz) owner to goldleaves_kernel;
alter function billing.pause_subscription(uuid, timestamptz) owner to goldleaves_kernel;
alter function billing.mark_past_due(uuid, integer, timestamptz) owner to goldleaves_kernel;
alter function billing.mark_paid(uuid, timestamptz) owner to goldleaves_kernel;
alter function billing.set_payment_method(uuid, boolean) owner to goldleaves_kernel;
grant execute on function billing.raise_not_active(text) to goldleaves_kernel;
grant execute on function
  billing.start_subscription(uuid, text, integer, boolean, timestamptz), billing.change_subscription(uuid, text, boolean, timestamptz),
  billing.cancel_subscription(uuid, boolean, text, timestamptz), billing.resume_subscription(uuid, timestamptz),
  billing.pause_subscription(uuid, timestamptz), billing.mark_past_due(uuid, integer, timestamptz), billing.mark_paid(uuid, timestamptz),
  billing.set_payment_method(uuid, boolean) to platform_admin;
