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

-- What status at Stripe is here; null: one that there was not when this was made. Who is unpaid owes what was past due for too long: its grace is
-- over.
create or replace function stripe.status_here(p_status text)
returns text
language sql
immutable
parallel safe
as $$
  select case
    when p_status in ('trialing', 'active', 'past_due', 'paused', 'canceled', 'incomplete') then p_status
    when p_status = 'unpaid' then 'past_due'
    when p_status = 'incomplete_expired' then 'canceled'
  end
$$;

-- The plan that prices of a subscription stand for: as stripe.plan_prices says, else the plan that the price itself names in its metadata
-- (plan), or in its lookup key. Other prices beside it are something else that is charged for. Null: of none, or of several.
create or replace function stripe.plan_of(p_prices jsonb, out plan_code text, out price_id text, out amount numeric)
language sql
stable
set search_path = ''
as $$
  select
    case when count(distinct k.plan_code) = 1 then min(k.plan_code) end, case when count(distinct k.plan_code) = 1 then min(k.price_id) end,
    sum(k.amount)
  from (
    select coalesce(m.plan_code, l.code) as plan_code, p.price ->> 'id' as price_id, (p.price ->> 'amount')::numeric as amount
    from jsonb_array_elements(p_prices) as p (price)
    left join stripe.plan_prices m on m.price_id = p.price ->> 'id'
    left join billing.plans l on l.code = p.price ->> 'plan'
  ) as k
  where k.plan_code is not null
$$;

-- Raises what somebody has to do before a subscription counts as it is. One that is over needs nothing.
create or replace function stripe.require_known(p_facts jsonb)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if stripe.status_here(p_facts ->> 'status') is null then
    perform stripe.raise_unknown(
      format('a subscription has the status %s, which there was not when this was made', left(coalesce(p_facts ->> 'status', 'null'), 80)),
      'Install a newer version, then `goldleaves stripe replay`.'
    );
  elsif stripe.status_here(p_facts ->> 'status') <> 'canceled' and (stripe.plan_of(p_facts -> 'prices')).plan_code is null then
    perform stripe.raise_unknown(
      format(
        'the prices %s are of none of our plans, or of several',
        coalesce((select string_agg(p.price ->> 'id', ', ') from jsonb_array_elements(p_facts -> 'prices') as p (price)), '(none)')
      ),
      'Say with set_stripe_price which price is which plan.'
    );
  end if;
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

-- Of several subscriptions at a time the one counts that is alive and was begun last. A state whose prices are of no plan has the plan that comes
-- next, else the one before; a subscription that never had one does not count, and neither does a status that nobody knows.
create or replace function stripe.phases_of(p_organization_id uuid)
returns setof billing.subscription_phases
language sql
stable
set search_path = ''
as $$
  with told as materialized (
    select
      s.id, s.customer_id, t.n, t.at, t.facts, c.has_payment_method, p.plan_code, p.amount > 0 as fee_by_stripe,
      count(p.plan_code) over (partition by s.id order by t.n) as as_many,
      count(p.plan_code) over (partition by s.id) as in_all
    from stripe.subscriptions_of(p_organization_id) s
    join stripe.customers c on c.id = s.customer_id
    cross join lateral stripe.subscription_states(s.id) t
    cross join lateral stripe.plan_of(t.facts -> 'prices') p
    where stripe.status_here(t.facts ->> 'status') is not null
  ),
  states as materialized (
    select
      t.id, t.n, t.at, lead(t.at, 1, 'infinity') over one as until, t.facts ->> 'status' as status,
      stripe.status_here(t.facts ->> 'status') as status_here, p.plan_code, p.fee_by_stripe,
      case when t.facts ->> 'status' = 'trialing' then stripe.time_in(t.facts -> 'trial_end') end as trial_end,
      coalesce(
        stripe.time_in(t.facts -> 'cancel_at'),
        case when (t.facts ->> 'cancel_at_period_end')::boolean then stripe.time_in(t.facts -> 'current_period_end') end
      ) as cancel_at,
      stripe.time_in(t.facts -> 'ended_at') as ended_at,
      case
        when coalesce((t.facts ->> 'has_payment_method')::boolean, false) or t.has_payment_method then 'active'
        when t.facts ->> 'without_payment_method' = 'cancel' then 'canceled'
        when t.facts ->> 'without_payment_method' = 'pause' then 'paused'
        else 'active'
      end as after_trial,
      min(t.at) over (partition by t.id) as begun_at,
      lag(t.at) over one as at_before
    from told t
    join told p
      on p.id = t.id
      and p.plan_code is not null
      and p.as_many = case when t.plan_code is not null then t.as_many else least(t.as_many + 1, t.in_all) end
    window one as (partition by t.id order by t.n)
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

-- Whether who has it may use what it is for, or will again when something is paid: a subscription of our own ends where one like that begins.
create or replace function stripe.is_live(p_status text)
returns boolean
language sql
immutable
parallel safe
as $$ select p_status not in ('canceled', 'incomplete') $$;

-- What the timeline of an organization has to be from p_from on by phases_of(), where it is kept as p_kept until then.
create or replace function stripe.phases_from(
  p_phases billing.subscription_phases[], p_from timestamptz, p_kept billing.subscription_phases
)
returns setof billing.subscription_phases
language plpgsql
stable
set search_path = ''
as $$
declare
  v_phase billing.subscription_phases;
  v_first billing.subscription_phases;
  v_is_theirs boolean := p_kept.organization_id is null or p_kept.made_by = 'stripe';
begin
  foreach v_phase in array p_phases loop
    -- How long who was past due keeps access was promised by the setting of then.
    select coalesce(f.grace_ends_at, v_phase.grace_ends_at) into v_phase.grace_ends_at
    from (select) as one
    left join billing.subscription_phases f
      on f.organization_id = v_phase.organization_id
      and f.starts_at = greatest(v_phase.starts_at, p_from)
      and f.reason = v_phase.reason
      and v_phase.status = 'past_due';
    if v_phase.starts_at <= p_from then
      v_first := v_phase;
      v_first.starts_at := p_from;
      continue;
    elsif v_first.organization_id is not null then
      if v_is_theirs or stripe.is_live(v_first.status) then
        if (v_first.subscription_id, v_first.status, v_first.plan_code, v_first.fee_by_stripe)
          is distinct from (p_kept.subscription_id, p_kept.status, p_kept.plan_code, p_kept.fee_by_stripe)
        then
          return next v_first;
        end if;
        v_is_theirs := true;
      end if;
      v_first := null;
    end if;
    -- What is over at Stripe, or was never paid, takes nothing away that was given here.
    v_is_theirs := v_is_theirs or stripe.is_live(v_phase.status);
    if v_is_theirs then
      return next v_phase;
    end if;
  end loop;
  if v_first.organization_id is not null and (v_is_theirs or stripe.is_live(v_first.status))
    and (v_first.subscription_id, v_first.status, v_first.plan_code, v_first.fee_by_stripe)
      is distinct from (p_kept.subscription_id, p_kept.status, p_kept.plan_code, p_kept.fee_by_stripe)
  then
    return next v_first;
  end if;
end;
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
  v_phases billing.subscription_phases[] := array(select p from stripe.phases_of(p_organization_id) p order by p.starts_at);
  v_kept billing.subscription_phases;
  v_wanted billing.subscription_phases[];
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
      where f.organization_id = p_organization_id
        and f.starts_at <= v_now
        and not billing.is_stripes(f.organization_id, f.subscription_id)
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
  v_wanted := array(select p from stripe.phases_from(v_phases, v_from, v_kept) p);

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

  -- Also what was planned of a subscription of our own, where Stripe's has taken its place.
  delete from billing.subscription_phases f
  where f.organization_id = p_organization_id
    and f.starts_at >= v_from
    and (
      f.starts_at > v_now and cardinality(v_wanted) > 0
      or billing.is_stripes(f.organization_id, f.subscription_id)
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
    -- Whoever asked for this tells of it, once, whatever lies in between.
    case when w.starts_at <= v_now then v_now end, w.fee_by_stripe
  from unnest(v_wanted) w
  where not exists (
    select from billing.subscription_phases f where f.organization_id = w.organization_id and f.starts_at = w.starts_at
  )
  order by w.starts_at;
  return v_is_other or found;
end;
$$;

grant execute on function stripe.uuid_of(text), stripe.raise_unknown(text, text), stripe.status_here(text), stripe.plan_of(jsonb),
  stripe.require_known(jsonb), stripe.subscriptions_of(uuid), stripe.phases_of(uuid), stripe.is_live(text),
  stripe.phases_from(billing.subscription_phases[], timestamptz, billing.subscription_phases), stripe.renew_phases(uuid) to goldleaves_kernel;
