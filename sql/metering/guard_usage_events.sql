-- The last door to a finalized period: triggers on the facts themselves, so that it holds for everybody who can write at all,
-- a superuser included. Statement triggers with transition tables, since a row trigger would cost each event.

-- `changed` holds the rows as they are after the statement, or as they were before it; for an update it is called with both.
create or replace function metering.guard_usage_events()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
declare
  v_organizations uuid[];
  v_firsts timestamptz[];
  v_lasts timestamptz[];
  v_locked timestamptz;
begin
  -- First a coarse look, one row an organization. Only when that touches a finalized period, each row is looked at.
  select
    array_agg(t.organization_id order by t.organization_id),
    array_agg(t.first_at order by t.organization_id),
    array_agg(t.last_at order by t.organization_id)
  into v_organizations, v_firsts, v_lasts
  from (
    select organization_id, min(occurred_at) as first_at, max(occurred_at) as last_at
    from changed
    group by 1
  ) as t;

  if v_organizations is not null and exists (select from billing.finalized_periods(v_organizations, v_firsts, v_lasts)) then
    select p.period_start into v_locked
    from changed c
    join billing.billing_periods p
      on p.organization_id = c.organization_id and p.period_start <= c.occurred_at and p.period_end > c.occurred_at
    where p.status = 'finalized'
    limit 1;
    if found then
      perform billing.raise_locked(format('the period that starts at %s is finalized, its usage cannot be changed', v_locked));
    end if;
  end if;
  return null;
end;
$$;

alter function metering.guard_usage_events() owner to goldleaves_kernel;
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
    'create or replace trigger guard_insert after insert on %s referencing new table as changed
       for each statement execute function metering.guard_usage_events()', p_table);
  execute format(
    'create or replace trigger guard_update_old after update on %s referencing old table as changed
       for each statement execute function metering.guard_usage_events()', p_table);
  execute format(
    'create or replace trigger guard_update_new after update on %s referencing new table as changed
       for each statement execute function metering.guard_usage_events()', p_table);
  execute format(
    'create or replace trigger guard_delete after delete on %s referencing old table as changed
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
