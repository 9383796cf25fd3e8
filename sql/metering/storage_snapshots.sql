-- What each organization stored when its days ended, in its timezone. Taken hourly once a day is over by a quarter of an hour; what is recorded
-- of that day afterwards changes the snapshot only when it is made anew.

create or replace function metering.end_of_day(p_day date, p_timezone text)
returns timestamptz
language sql
immutable
parallel safe
set search_path = ''
as $$ select (p_day + 1)::timestamp at time zone p_timezone $$;

-- p_day null: every day that has ended since the last snapshot of an organization, for a month at most; of one that has none, the last day. Else
-- that day of all organizations, or of p_organization_id, over what is there. Returns how many were made.
create or replace function metering.take_storage_snapshots(p_day date default null, p_organization_id uuid default null)
returns integer
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_taken integer;
begin
  if p_day is null then
    perform metering.settle_storage();
  end if;

  insert into metering.storage_snapshots as s (organization_id, day, day_end, bytes, taken_at)
  select o.id, d.day, e.day_end, metering.recorded_storage(o.id, e.day_end), v_now
  from tenancy.organizations o
  cross join lateral (select ((v_now - interval '15 minutes') at time zone o.billing_timezone)::date - 1 as day) as last
  cross join lateral (
    select p_day as day
    where p_day is not null
    union all
    select g.day::date
    from generate_series(
      greatest(coalesce((select max(s.day) + 1 from metering.storage_snapshots s where s.organization_id = o.id), last.day), last.day - 30)::timestamp,
      last.day::timestamp, interval '1 day'
    ) as g (day)
    where p_day is null
  ) as d
  cross join lateral (select metering.end_of_day(d.day, o.billing_timezone) as day_end) as e
  where o.kind <> 'platform'
    and (p_organization_id is null or o.id = p_organization_id)
    and e.day_end <= v_now
  on conflict (organization_id, day) do update set day_end = excluded.day_end, bytes = excluded.bytes, taken_at = excluded.taken_at
  where p_day is not null;
  get diagnostics v_taken = row_count;
  return v_taken;
end;
$$;

create or replace function metering.remake_storage_snapshots(p_day date, p_organization_id uuid)
returns integer
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_taken integer := metering.take_storage_snapshots(p_day, p_organization_id);
begin
  if v_taken = 0 then
    raise exception using
      errcode = 'PT409',
      message = format('DAY_NOT_ENDED: %s is not over', p_day),
      hint = 'A day ends at midnight in the timezone of the organization.';
  end if;
  return v_taken;
end;
$$;

alter function metering.take_storage_snapshots(date, uuid) owner to goldleaves_kernel;
alter function metering.remake_storage_snapshots(date, uuid) owner to goldleaves_kernel;
grant execute on function metering.end_of_day(date, text) to goldleaves_kernel;
grant execute on function metering.take_storage_snapshots(date, uuid) to sidecar;
grant execute on function metering.remake_storage_snapshots(date, uuid) to platform_admin;
