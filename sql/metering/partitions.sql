-- usage_events is partitioned by month (UTC). Partitions are made ahead by ops.maintain(); an event of a month that has none
-- makes it. A partition has its own RLS switches and triggers and no grants: it is reached through its parent only.

-- The month (UTC) whose partition holds a moment.
create or replace function metering.month_of(p_at timestamptz)
returns date
language sql
immutable
parallel safe
as $$ select pg_catalog.date_trunc('month', p_at at time zone 'UTC')::date $$;

-- Owned by the table's owner, since it does DDL; the only thing it can be made to do is to make a partition of one month.
create or replace function metering.ensure_partition(p_month date)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_month date := date_trunc('month', p_month::timestamp)::date;
  v_name text := format('usage_events_%s', to_char(v_month, 'YYYY_MM'));
begin
  if to_regclass(format('metering.%I', v_name)) is not null then
    return;
  end if;
  -- Whoever waited here looks into the table of tables itself: to_regclass may still answer from before the wait.
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.partitions', 0));
  if exists (
    select from pg_catalog.pg_class where relname = v_name and relnamespace = 'metering'::regnamespace
  ) then
    return;
  end if;

  -- Made apart and then attached: PARTITION OF would lock the parent against readers.
  execute format('create table metering.%I (like metering.usage_events including defaults including generated including constraints)', v_name);
  execute format('alter table metering.%I enable row level security', v_name);
  execute format('alter table metering.%I force row level security', v_name);
  execute format(
    'alter table metering.usage_events attach partition metering.%I for values from (%L) to (%L)',
    v_name, v_month::timestamp at time zone 'UTC', (v_month + interval '1 month') at time zone 'UTC'
  );
  perform metering.attach_usage_guards(format('metering.%I', v_name)::regclass);
end;
$$;

create or replace function metering.ensure_partitions(p_from timestamptz, p_until timestamptz)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform metering.ensure_partition(m::date)
  from generate_series(
    metering.month_of(p_from)::timestamp, metering.month_of(p_until)::timestamp, interval '1 month'
  ) as m;
end;
$$;

grant execute on function metering.month_of(timestamptz), metering.ensure_partition(date),
  metering.ensure_partitions(timestamptz, timestamptz) to goldleaves_kernel;
