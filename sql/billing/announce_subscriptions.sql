-- Phases that have begun are told of: tenancy.organizations.plan follows, and the provider's application gets a message. A change does so
-- itself; what time alone begins, the sidecar's clock does.

-- The subscription of an organization as it is now, or the last one that was canceled: what view billing_subscriptions shows and messages
-- say.
-- Not now(): who has just changed it is shown what has become of it.
create or replace function billing.subscription_of(p_organization_id uuid)
returns table (
  id uuid, plan text, status text, since timestamptz, reason text, started_at timestamptz, trial_end timestamptz,
  current_period_start timestamptz, current_period_end timestamptz, cancel_at timestamptz, next_plan text, next_plan_at timestamptz,
  grace_ends_at timestamptz, has_access boolean, has_payment_method boolean, created_at timestamptz
)
language sql
stable
set search_path = ''
as $$
  select
    s.id, f.plan_code, f.status, f.starts_at, f.reason,
    (
      select min(e.starts_at)
      from billing.subscription_phases e
      where e.organization_id = s.organization_id
        and e.subscription_id = s.id
    ),
    s.trial_end, p.period_start, p.period_end, a.cancel_at,
    case when a.change_at < coalesce(a.cancel_at, 'infinity') then a.change_plan end,
    case when a.change_at < coalesce(a.cancel_at, 'infinity') then a.change_at end,
    f.grace_ends_at,
    f.status in ('trialing', 'active') or f.status = 'past_due' and f.grace_ends_at > c.at,
    s.has_payment_method, s.created_at
  from (select clock_timestamp() as at) as c
  join billing.subscription_phases f
    on f.organization_id = p_organization_id
    and f.starts_at = (
      select max(e.starts_at)
      from billing.subscription_phases e
      where e.organization_id = p_organization_id
        and e.subscription_id is not null
        and e.starts_at <= c.at
    )
  join billing.subscriptions s on s.organization_id = f.organization_id and s.id = f.subscription_id
  left join lateral billing.find_period(f.organization_id, c.at) p on f.status <> 'canceled'
  left join lateral billing.agreed_ahead(f, c.at) a on f.status <> 'canceled'
$$;

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
  -- Not the clock itself, by which no index would be searched: what lies ahead stays unread.
  v_now timestamptz := clock_timestamp();
  v_organization_id uuid;
  v_done integer := 0;
begin
  for v_organization_id in
    select f.organization_id
    from billing.subscription_phases f
    where f.announced_at is null
      and f.starts_at <= v_now
    order by f.starts_at
    limit p_most
    for no key update skip locked
  loop
    -- One that cannot be told of holds up no other.
    begin
      perform billing.announce_phases(v_organization_id);
      v_done := v_done + 1;
    exception when others then
      raise warning 'what began of the subscription of organization % is not told: %', v_organization_id, sqlerrm;
    end;
  end loop;
  return v_done;
end;
$$;

alter function billing.advance_subscriptions(integer) owner to goldleaves_kernel;
grant execute on function billing.announce_phases(uuid) to goldleaves_kernel;
grant execute on function billing.advance_subscriptions(integer) to sidecar;

-- What view billing_subscriptions reads, as its caller.
grant execute on function billing.subscription_of(uuid), billing.agreed_ahead(billing.subscription_phases, timestamptz),
  billing.find_period(uuid, timestamptz), billing.period_bounds(text, integer, timestamptz), billing.anchor_instant(date, integer, text),
  billing.anchor_date(date, integer), billing.period_end_after(text, integer, timestamptz),
  billing.period_start_before(text, integer, timestamptz) to member, platform_admin, goldleaves_kernel;
