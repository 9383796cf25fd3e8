-- For whoever writes usage: lock the organizations against finalization, make the periods that are missing, and say which of those
-- in reach are finalized already. Three arrays of one length: an organization, and the first and last moment to be written.
create or replace function billing.finalized_periods(p_organization_ids uuid[], p_firsts timestamptz[], p_lasts timestamptz[])
returns setof timestamptz
language plpgsql
volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
begin
  perform billing.share_period_locks(p_organization_ids);
  -- A period that does not exist would be an open door: another could make and finalize it unseen. In the order of the
  -- organizations, so that two writers do not wait for each other.
  perform billing.ensure_periods(t.organization_id, t.first_at, t.last_at)
  from (
    select u.organization_id, u.first_at, u.last_at
    from unnest(p_organization_ids, p_firsts, p_lasts) as u (organization_id, first_at, last_at)
    order by 1
  ) as t;

  -- Outside READ COMMITTED the snapshot may be older than the lock; locking the rows then raises 40001 if they have changed since:
  -- a period that was finalized, an organization that pays for itself now.
  if current_setting('transaction_isolation') <> 'read committed' then
    perform p.status
    from billing.billing_periods p
    join unnest(p_organization_ids, p_firsts, p_lasts) as t (organization_id, first_at, last_at)
      on p.organization_id = t.organization_id and p.period_start <= t.last_at and p.period_end > t.first_at
    for share of p;
    perform o.billing_start_at
    from tenancy.organizations o
    where o.id = any (p_organization_ids)
    for share of o;
  end if;

  return query
    select p.period_start
    from unnest(p_organization_ids, p_firsts, p_lasts) as t (organization_id, first_at, last_at)
    join billing.billing_periods p
      on p.organization_id = t.organization_id and p.period_start <= t.last_at and p.period_end > t.first_at
    where p.status = 'finalized';
end;
$$;

grant execute on function billing.finalized_periods(uuid[], timestamptz[], timestamptz[]) to goldleaves_kernel;
