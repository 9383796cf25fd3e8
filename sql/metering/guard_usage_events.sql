-- The last door to a finalized period: triggers on the facts themselves, so that it holds for everybody who can write at all,
-- a superuser included. Statement triggers with transition tables, since a row trigger would cost each event.

create or replace function metering.require_open_periods(p_organization_ids uuid[], p_firsts timestamptz[], p_lasts timestamptz[])
returns setof timestamptz
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform billing.share_period_locks(p_organization_ids);
  -- A period that does not exist would be an open door: another could make and finalize it unseen.
  perform billing.ensure_periods(t.organization_id, t.first_at, t.last_at)
  from unnest(p_organization_ids, p_firsts, p_lasts) as t (organization_id, first_at, last_at);

  -- Outside READ COMMITTED the snapshot may be older than the lock; locking the row then raises 40001 if it has changed since.
  if current_setting('transaction_isolation') <> 'read committed' then
    perform p.status
    from billing.billing_periods p
    join unnest(p_organization_ids, p_firsts, p_lasts) as t (organization_id, first_at, last_at)
      on p.organization_id = t.organization_id and p.period_start <= t.last_at and p.period_end > t.first_at
    for share of p;
  end if;

  return query
    select p.period_start
    from unnest(p_organization_ids, p_firsts, p_lasts) as t (organization_id, first_at, last_at)
    join billing.billing_periods p
      on p.organization_id = t.organization_id and p.period_start <= t.last_at and p.period_end > t.first_at
    where p.status = 'finalized';
end;
$$;

create or replace function metering.guard_usage_events()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_organizations uuid[];
  v_firsts timestamptz[];
  v_lasts timestamptz[];
  v_locked timestamptz;
begin
  -- First a coarse look, one row an organization. Only when that touches a finalized period, each row is looked at.
  if tg_op in ('INSERT', 'UPDATE') then
    select array_agg(organization_id order by organization_id), array_agg(first_at order by organization_id), array_agg(last_at order by organization_id)
    into v_organizations, v_firsts, v_lasts
    from (select organization_id, min(occurred_at) as first_at, max(occurred_at) as last_at from new_rows group by 1) as t;

    if v_organizations is not null
      and exists (select from metering.require_open_periods(v_organizations, v_firsts, v_lasts))
    then
      select p.period_start into v_locked
      from new_rows n
      join billing.billing_periods p
        on p.organization_id = n.organization_id and p.period_start <= n.occurred_at and p.period_end > n.occurred_at
      where p.status = 'finalized'
      limit 1;
    end if;
  end if;

  if v_locked is null and tg_op in ('UPDATE', 'DELETE') then
    select array_agg(organization_id order by organization_id), array_agg(first_at order by organization_id), array_agg(last_at order by organization_id)
    into v_organizations, v_firsts, v_lasts
    from (select organization_id, min(occurred_at) as first_at, max(occurred_at) as last_at from old_rows group by 1) as t;

    if v_organizations is not null
      and exists (select from metering.require_open_periods(v_organizations, v_firsts, v_lasts))
    then
      select p.period_start into v_locked
      from old_rows n
      join billing.billing_periods p
        on p.organization_id = n.organization_id and p.period_start <= n.occurred_at and p.period_end > n.occurred_at
      where p.status = 'finalized'
      limit 1;
    end if;
  end if;

  if v_locked is not null then
    perform billing.raise_locked(format('the period that starts at %s is finalized, its usage cannot be changed', v_locked));
  end if;
  return null;
end;
$$;

alter function metering.guard_usage_events() owner to goldleaves_kernel;
grant execute on function metering.require_open_periods(uuid[], timestamptz[], timestamptz[]) to goldleaves_kernel;
-- Who makes a partition attaches the trigger to it.
grant execute on function metering.guard_usage_events() to goldleaves_owner;

-- Triggers with transition tables are not inherited by partitions: the parent and each partition have their own.
create or replace function metering.attach_usage_guards(p_table regclass)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  execute format(
    'create or replace trigger guard_insert after insert on %s referencing new table as new_rows
       for each statement execute function metering.guard_usage_events()', p_table);
  execute format(
    'create or replace trigger guard_update after update on %s referencing old table as old_rows new table as new_rows
       for each statement execute function metering.guard_usage_events()', p_table);
  execute format(
    'create or replace trigger guard_delete after delete on %s referencing old table as old_rows
       for each statement execute function metering.guard_usage_events()', p_table);
  execute format(
    'create or replace trigger guard_truncate before truncate on %s
       for each statement execute function billing.refuse_truncate()', p_table);
end;
$$;

do $$
begin
  perform metering.attach_usage_guards(relid)
  from pg_catalog.pg_partition_tree('metering.usage_events');
end
$$;
