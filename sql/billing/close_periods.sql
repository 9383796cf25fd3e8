-- Months close by themselves. A scheduler, any number of them at once, asks which periods are due and closes each in a transaction of its own:
-- what is cut off in the middle was not begun, and what cannot be closed now holds up its own organization alone.
--
-- A period is due when it has ended and the grace is over, in which what is late still arrives; where usage came when it had long ended, as
-- from an import, the grace counts from then on. An organization takes part from its first usage on, or as soon as its plan has a fee or
-- a minimum; whoever owes nothing and has used nothing gets no invoice, and one who never used anything not even a period.

-- Organizations without an open period are given what they lack up to now. Somebody who makes periods of one at this moment goes first: next time
-- there is nothing left to do.
create or replace function billing.begin_periods(p_most integer)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_organization record;
begin
  for v_organization in
    with owing as materialized (
      select k.plan, k.currency
      from (select distinct o.plan, o.currency from tenancy.organizations o where o.kind <> 'platform') as k
      where exists (
        select from billing.prices_in_force(k.plan, k.currency, now()) r where r.meter_code is null or r.minimum_cents > 0
      )
    )
    select o.id, p.last_end
    from tenancy.organizations o
    left join lateral (
      select max(p.period_end) as last_end from billing.billing_periods p where p.organization_id = o.id
    ) as p on true
    where o.kind <> 'platform'
      and not exists (select from billing.billing_periods p where p.organization_id = o.id and p.status <> 'finalized')
      and (p.last_end is not null or (o.plan, o.currency) in (select w.plan, w.currency from owing w))
    limit p_most
  loop
    if pg_try_advisory_xact_lock(hashtextextended('goldleaves.periods.' || v_organization.id, 0)) then
      -- One that cannot have any, such as in a timezone that this server knows no more, holds up no other.
      begin
        perform billing.ensure_periods(v_organization.id, coalesce(v_organization.last_end, now()), now());
      exception when others then
        raise warning 'organization % gets no billing period: %', v_organization.id, sqlerrm;
      end;
    end if;
  end loop;
end;
$$;

-- Which periods are to be closed now: of each organization its oldest one, so that who closes several at once meets nobody. The one that
-- has waited longest comes first. p_without: organizations to leave out, since closing them has just failed.
-- What has ended is marked as closing here. Rows that somebody holds wait until the next time: nobody who writes usage is waited for.
create or replace function billing.due_periods(p_grace interval, p_most integer, p_without uuid[] default '{}')
returns table (organization_id uuid, period_start timestamptz, due_at timestamptz)
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform billing.begin_periods(p_most);

  update billing.billing_periods p
  set status = 'closing'
  from (
    select e.organization_id, e.period_start
    from billing.billing_periods e
    where e.status = 'open'
      and e.period_end <= clock_timestamp()
      and e.organization_id <> audit.platform()
    limit p_most
    for no key update skip locked
  ) as ended
  where p.organization_id = ended.organization_id
    and p.period_start = ended.period_start;

  return query
    select d.organization_id, d.period_start, d.due_at
    from (
      select distinct on (p.organization_id)
        p.organization_id, p.period_start, greatest(p.period_end, p.created_at) + p_grace as due_at
      from billing.billing_periods p
      where p.status <> 'finalized'
        and p.period_end <= clock_timestamp()
        and p.organization_id <> audit.platform()
      order by p.organization_id, p.period_start
    ) as d
    where d.due_at <= clock_timestamp()
      and d.organization_id <> all (p_without)
    order by d.due_at, d.organization_id
    limit p_most;
end;
$$;

-- Closes one of them. Returns how many invoices were made: 0 when there was nothing to invoice, or the period is closed already; null
-- when somebody else is at it.
create or replace function billing.close_period(p_organization_id uuid, p_period_start timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
declare
  v_period billing.billing_periods;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('goldleaves.closing.' || p_organization_id, 0)) then
    return null;
  end if;
  perform billing.take_period_lock(p_organization_id);

  -- As it is now: what the lock waited for included.
  select * into v_period
  from billing.billing_periods p
  where p.organization_id = p_organization_id
    and p.period_start = p_period_start
    and p.status <> 'finalized';
  if not found then
    return 0;
  end if;
  if v_period.period_end > clock_timestamp() then
    raise exception using
      errcode = 'PT409',
      message = format('PERIOD_NOT_ENDED: the period ends at %s', v_period.period_end),
      hint = 'A period can be finalized once it has ended.';
  end if;
  return billing.issue_invoices(v_period, false);
end;
$$;

alter function billing.due_periods(interval, integer, uuid[]) owner to goldleaves_kernel;
alter function billing.close_period(uuid, timestamptz) owner to goldleaves_kernel;
grant execute on function billing.begin_periods(integer) to goldleaves_kernel;
grant execute on function billing.due_periods(interval, integer, uuid[]), billing.close_period(uuid, timestamptz) to sidecar;
