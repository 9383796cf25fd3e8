-- What has begun of a subscription never changes: usage was priced by it. Only what is planned is taken back, and what is added comes after what has
-- begun, outside periods that are finalized. Of one that Stripe manages it may change where nothing is finalized: what Stripe says comes in any
-- order. Whoever writes one that begins holds the period lock alone, so no period is closed meanwhile.
create or replace function billing.guard_subscription_phases()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_closed_until timestamptz;
  v_is_stripes boolean;
begin
  if tg_op = 'UPDATE' then
    if to_jsonb(new) - 'announced_at' <> to_jsonb(old) - 'announced_at' then
      perform billing.raise_phase_fixed(old.starts_at);
    end if;
    return new;
  elsif tg_op = 'DELETE' then
    if old.starts_at <= clock_timestamp() then
      perform billing.hold_period_lock(old.organization_id);
      if not billing.is_stripes(old.organization_id, old.subscription_id)
        or old.starts_at < coalesce(billing.finalized_until(old.organization_id), '-infinity')
      then
        perform billing.raise_phase_fixed(old.starts_at);
      end if;
    end if;
    return old;
  end if;

  -- Whoever changes a subscription holds it already. A period that runs is not closed, so what is planned for later needs none.
  if new.starts_at < clock_timestamp() + interval '1 hour' then
    perform billing.hold_period_lock(new.organization_id);
  end if;
  v_closed_until := billing.finalized_until(new.organization_id);
  v_is_stripes := billing.is_stripes(new.organization_id, new.subscription_id);
  if new.starts_at < v_closed_until then
    perform billing.raise_locked(format('periods are finalized until %s, and a subscription cannot change before', v_closed_until));
  elsif exists (
    select
    from billing.subscription_phases f
    where f.organization_id = new.organization_id
      and f.starts_at > new.starts_at
      and f.starts_at <= clock_timestamp()
      and not (v_is_stripes and billing.is_stripes(f.organization_id, f.subscription_id))
  ) then
    perform billing.raise_phase_fixed(new.starts_at);
  end if;
  return new;
end;
$$;

create or replace function billing.is_stripes(p_organization_id uuid, p_subscription_id uuid)
returns boolean
language sql
stable
set search_path = ''
as $$
  select exists (
    select
    from billing.subscriptions s
    where s.organization_id = p_organization_id
      and s.id = p_subscription_id
      and s.managed_by = 'stripe'
  )
$$;

create or replace function billing.raise_phase_fixed(p_starts_at timestamptz)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('SUBSCRIPTION_FIXED: what a subscription was at %s stays as it is', p_starts_at),
    hint = 'Change the subscription from now on.';
end;
$$;

create or replace function billing.refuse_phases_truncate()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform billing.raise_phase_fixed('-infinity');
  return null;
end;
$$;

-- Where periods are finalized until; null: nowhere.
create or replace function billing.finalized_until(p_organization_id uuid)
returns timestamptz
language sql
stable
set search_path = ''
as $$
  select max(p.period_end)
  from billing.billing_periods p
  where p.organization_id = p_organization_id
    and p.status = 'finalized'
$$;

-- organizations.plan follows the phases, once there are any.
create or replace function billing.keep_plan_of_subscription()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if new.plan <> (select f.plan_code from billing.phase_at(new.id, clock_timestamp()) f) then
    raise exception using
      errcode = 'PT409',
      message = 'PLAN_OF_SUBSCRIPTION: the organization has had a subscription, and its plan follows from that',
      hint = 'Use change_subscription or set_plan.';
  end if;
  return new;
end;
$$;

alter function billing.guard_subscription_phases() owner to goldleaves_kernel;
alter function billing.keep_plan_of_subscription() owner to goldleaves_kernel;
grant execute on function billing.raise_phase_fixed(timestamptz), billing.finalized_until(uuid), billing.is_stripes(uuid, uuid) to goldleaves_kernel;

create or replace trigger guard before insert or update or delete on billing.subscription_phases
  for each row execute function billing.guard_subscription_phases();
create or replace trigger guard_truncate before truncate on billing.subscription_phases
  for each statement execute function billing.refuse_phases_truncate();
alter table billing.subscription_phases enable always trigger guard, enable always trigger guard_truncate;

create or replace trigger keep_plan before update of plan on tenancy.organizations
  for each row when (old.plan is distinct from new.plan) execute function billing.keep_plan_of_subscription();
