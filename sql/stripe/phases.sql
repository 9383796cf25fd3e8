-- The phases that follow from what Stripe says of an organization's subscriptions: see billing.subscription_phases. They are worked out anew
-- from all of it, so they do not depend on the order in which it came. What lies ahead is planned as Stripe has it, so that nothing waits
-- for a webhook: the end of a trial, and of a subscription that was canceled.

create or replace function stripe.uuid_of(p_id text)
returns uuid
language sql
immutable
parallel safe
as $$
  select pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to('stripe.' || p_id, 'UTF8')), 1, 16), 'hex')::uuid
$$;

create or replace function stripe.raise_unknown(p_what text, p_hint text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using errcode = 'PT409', message = 'STRIPE_UNKNOWN: ' || p_what, hint = p_hint;
end;
$$;

-- What status at Stripe is here. Who is unpaid owes what was past due for too long: its grace is over.
create or replace function stripe.status_here(p_status text)
returns text
language plpgsql
immutable
set search_path = ''
as $$
begin
  if p_status in ('trialing', 'active', 'past_due', 'paused', 'canceled', 'incomplete') then
    return p_status;
  elsif p_status = 'unpaid' then
    return 'past_due';
  elsif p_status = 'incomplete_expired' then
    return 'canceled';
  end if;
  perform stripe.raise_unknown(
    format('a subscription has the status %s, which there was not when this was made', left(coalesce(p_status, 'null'), 80)),
    'Install a newer version, then `goldleaves stripe replay`.'
  );
  return null;
end;
$$;

-- The plan that prices of a subscription stand for: as stripe.plan_prices says, else the plan that the price itself names in its metadata
-- (plan), or in its lookup key. Other prices beside it are something else that is charged for.
create or replace function stripe.plan_of(p_prices jsonb, out plan_code text, out price_id text, out amount numeric)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_plans integer;
begin
  select count(distinct k.plan_code), min(k.plan_code), min(k.price_id), sum(k.amount) into v_plans, plan_code, price_id, amount
  from (
    select coalesce(m.plan_code, l.code) as plan_code, p.price ->> 'id' as price_id, (p.price ->> 'amount')::numeric as amount
    from jsonb_array_elements(p_prices) as p (price)
    left join stripe.plan_prices m on m.price_id = p.price ->> 'id'
    left join billing.plans l on l.code = p.price ->> 'plan'
  ) as k
  where k.plan_code is not null;
  if v_plans = 1 then
    return;
  end if;
  perform stripe.raise_unknown(
    format(
      'the prices %s are of %s of our plans',
      coalesce((select string_agg(p.price ->> 'id', ', ') from jsonb_array_elements(p_prices) as p (price)), '(none)'),
      case v_plans when 0 then 'none' else v_plans::text end
    ),
    'Say with set_stripe_price which price is which plan, then `goldleaves stripe replay`.'
  );
end;
$$;

-- Ids of the subscriptions at Stripe that an organization's customers have, or had.
create or replace function stripe.subscriptions_of(p_organization_id uuid)
returns table (id text, customer_id text)
language sql
stable
set search_path = ''
as $$
  select distinct e.object_id, e.customer_id
  from stripe.customers c
  join stripe.webhook_events e on e.customer_id = c.id
  where c.organization_id = p_organization_id
    and e.subscription_id = e.object_id
    and e.status not in ('ignored')
$$;

-- Of several subscriptions at a time the one counts that is alive and was begun last.
create or replace function stripe.phases_of(p_organization_id uuid)
returns setof billing.subscription_phases
language sql
stable
set search_path = ''
as $$
  with states as materialized (
    select
      s.id, t.n, t.at, lead(t.at, 1, 'infinity') over one as until, t.facts ->> 'status' as status, stripe.status_here(t.facts ->> 'status') as status_here,
      p.plan_code, p.amount > 0 as fee_by_stripe,
      case when t.facts ->> 'status' = 'trialing' then stripe.time_in(t.facts -> 'trial_end') end as trial_end,
      coalesce(
        stripe.time_in(t.facts -> 'cancel_at'),
        case when (t.facts ->> 'cancel_at_period_end')::boolean then stripe.time_in(t.facts -> 'current_period_end') end
      ) as cancel_at,
      stripe.time_in(t.facts -> 'ended_at') as ended_at,
      case
        when coalesce((t.facts ->> 'has_payment_method')::boolean, false) or c.has_payment_method then 'active'
        when t.facts ->> 'without_payment_method' = 'cancel' then 'canceled'
        when t.facts ->> 'without_payment_method' = 'pause' then 'paused'
        else 'active'
      end as after_trial,
      min(t.at) over (partition by s.id) as begun_at,
      lag(t.at) over one as at_before
    from stripe.subscriptions_of(p_organization_id) s
    join stripe.customers c on c.id = s.customer_id
    cross join lateral stripe.subscription_states(s.id) t
    cross join lateral stripe.plan_of(t.facts -> 'prices') p
    window one as (partition by s.id order by t.n)
  ),
  planned as (
    select
      s.id, s.begun_at, s.n, 0 as step, s.plan_code, s.fee_by_stripe, s.status, s.status_here,
      -- It ended when Stripe says that it did, and not when that was written.
      case
        when s.status_here = 'canceled' and s.ended_at < s.at and s.ended_at > coalesce(s.at_before, '-infinity') then s.ended_at
        else s.at
      end as at
    from states s
    union all
    select s.id, s.begun_at, s.n, 1, s.plan_code, s.fee_by_stripe, s.after_trial, s.after_trial, s.trial_end
    from states s
    where s.trial_end > s.at
      and s.trial_end < s.until
      and s.trial_end < coalesce(s.cancel_at, 'infinity')
    union all
    select s.id, s.begun_at, s.n, 2, s.plan_code, s.fee_by_stripe, 'canceled', 'canceled', s.cancel_at
    from states s
    where s.cancel_at > s.at
      and s.cancel_at < s.until
      and s.status_here <> 'canceled'
  ),
  -- Of several in one moment the last one is what counts.
  own as materialized (
    select distinct on (p.id, p.at)
      p.*, lead(p.at, 1, 'infinity') over (partition by p.id order by p.at, p.n, p.step) as until
    from planned p
    order by p.id, p.at, p.n desc, p.step desc
  ),
  chosen as (
    select m.at, o.*
    from (select distinct w.at from own w) as m (at)
    cross join lateral (
      select w.id, w.plan_code, w.fee_by_stripe, w.status, w.status_here
      from own w
      where w.at <= m.at
        and w.until > m.at
      order by w.status_here not in ('canceled', 'incomplete') desc, w.begun_at desc, w.id desc
      limit 1
    ) as o
  ),
  changes as (
    select
      c.*,
      lag(c.at) over (order by c.at) is null
        or (lag(c.id) over w, lag(c.status) over w, lag(c.plan_code) over w, lag(c.fee_by_stripe) over w)
          is distinct from (c.id, c.status, c.plan_code, c.fee_by_stripe) as is_change
    from chosen c
    window w as (order by c.at)
  )
  select
    p_organization_id, c.at, stripe.uuid_of(c.id), c.status_here, c.plan_code,
    case c.status
      when 'past_due' then c.at + make_interval(secs => 86400.0 * (select d.past_due_grace_days from billing.defaults d))
      when 'unpaid' then c.at
    end,
    'Stripe: ' || c.status, null::timestamptz, 'stripe', null::timestamptz, c.fee_by_stripe
  from changes c
  where c.is_change
  order by c.at
$$;

-- Brings the timeline of an organization up to what Stripe says of it, for who holds its period lock. What is finalized stays, and what the
-- organization was on before Stripe. Returns whether anything became other than it was.
create or replace function stripe.renew_phases(p_organization_id uuid)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_phase billing.subscription_phases;
  v_kept billing.subscription_phases;
  v_clipped billing.subscription_phases;
  v_wanted billing.subscription_phases[] := '{}';
  v_phases billing.subscription_phases[] := array(select p from stripe.phases_of(p_organization_id) p);
  v_from timestamptz;
  v_is_other boolean;
begin
  if cardinality(v_phases) = 0 then
    return false;
  end if;
  -- From there on it is Stripe's: nothing is finalized, and nothing that began by our own hand lies behind it.
  v_from := greatest(
    billing.finalized_until(p_organization_id),
    (
      select max(f.starts_at) + interval '1 microsecond'
      from billing.subscription_phases f
      left join billing.subscriptions s on s.organization_id = f.organization_id and s.id = f.subscription_id
      where f.organization_id = p_organization_id
        and f.starts_at <= v_now
        and s.managed_by is distinct from 'stripe'
        and isfinite(f.starts_at)
    ),
    '-infinity'
  );
  -- What lies before the first phase keeps the plan that the organization had.
  insert into billing.subscription_phases (organization_id, starts_at, status, plan_code, made_by, announced_at)
  select p_organization_id, v_from, 'active', o.plan, 'stripe', v_now
  from tenancy.organizations o
  where o.id = p_organization_id
    and not exists (select from billing.subscription_phases f where f.organization_id = p_organization_id);
  if found and isfinite(v_from) then
    v_from := v_from + interval '1 microsecond';
  end if;

  select * into v_kept from billing.phase_at(p_organization_id, v_from - interval '1 microsecond');
  foreach v_phase in array v_phases loop
    if v_phase.starts_at <= v_from then
      v_phase.starts_at := v_from;
      v_clipped := v_phase;
    else
      v_wanted := v_wanted || v_phase;
    end if;
  end loop;
  if v_clipped.status is not null
    and (v_clipped.subscription_id, v_clipped.status, v_clipped.plan_code, v_clipped.fee_by_stripe)
      is distinct from (v_kept.subscription_id, v_kept.status, v_kept.plan_code, v_kept.fee_by_stripe)
  then
    v_wanted := v_clipped || v_wanted;
  end if;

  insert into billing.subscriptions as s (organization_id, id, trial_end, has_payment_method, created_by, managed_by)
  select distinct on (p.id)
    p_organization_id, stripe.uuid_of(p.id), stripe.time_in(t.facts -> 'trial_end'),
    coalesce((t.facts ->> 'has_payment_method')::boolean, false) or c.has_payment_method, 'stripe', 'stripe'
  from stripe.subscriptions_of(p_organization_id) p
  join stripe.customers c on c.id = p.customer_id
  cross join lateral stripe.subscription_states(p.id) t
  order by p.id, t.n desc
  on conflict (organization_id, id) do update
  set trial_end = excluded.trial_end, has_payment_method = excluded.has_payment_method
  where (s.trial_end, s.has_payment_method) is distinct from (excluded.trial_end, excluded.has_payment_method);
  v_is_other := found;

  -- Also what was planned of a subscription of our own: Stripe's has taken its place.
  delete from billing.subscription_phases f
  where f.organization_id = p_organization_id
    and f.starts_at >= v_from
    and (
      f.starts_at > v_now
      or exists (
        select
        from billing.subscriptions s
        where s.organization_id = f.organization_id and s.id = f.subscription_id and s.managed_by = 'stripe'
      )
    )
    and not exists (
      select
      from unnest(v_wanted) w
      where (w.starts_at, w.subscription_id, w.status, w.plan_code, w.fee_by_stripe, w.reason)
          = (f.starts_at, f.subscription_id, f.status, f.plan_code, f.fee_by_stripe, f.reason)
        and w.grace_ends_at is not distinct from f.grace_ends_at
    );
  v_is_other := v_is_other or found;
  insert into billing.subscription_phases (
    organization_id, starts_at, subscription_id, status, plan_code, grace_ends_at, reason, made_by, announced_at, fee_by_stripe
  )
  select
    w.organization_id, w.starts_at, w.subscription_id, w.status, w.plan_code, w.grace_ends_at, w.reason, w.made_by,
    -- Only what there is now is told.
    case when lead(w.starts_at) over (order by w.starts_at) <= v_now then v_now end, w.fee_by_stripe
  from unnest(v_wanted) w
  where not exists (
    select from billing.subscription_phases f where f.organization_id = w.organization_id and f.starts_at = w.starts_at
  );
  return v_is_other or found;
end;
$$;

grant execute on function stripe.uuid_of(text), stripe.raise_unknown(text, text), stripe.status_here(text), stripe.plan_of(jsonb),
  stripe.subscriptions_of(uuid), stripe.phases_of(uuid), stripe.renew_phases(uuid) to goldleaves_kernel;
