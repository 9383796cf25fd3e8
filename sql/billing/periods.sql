-- Billing periods are half-open, monthly, in the organization's timezone, anchored like the 31st is: Jan 31, Feb 28, Mar 31.
-- They are made on demand and form a chain without gaps: each starts where the one before ends.

create or replace function billing.anchor_date(p_month date, p_anchor_day integer)
returns date
language sql
immutable
parallel safe
set search_path = ''
as $$
  select least(
    date_trunc('month', p_month::timestamp)::date + (p_anchor_day - 1),
    (date_trunc('month', p_month::timestamp) + interval '1 month - 1 day')::date
  )
$$;

create or replace function billing.period_bounds(
  p_timezone text, p_anchor_day integer, p_at timestamptz, out period_start timestamptz, out period_end timestamptz
)
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
declare
  v_day date := (p_at at time zone p_timezone)::date;
  v_anchor date := billing.anchor_date(v_day, p_anchor_day);
  v_month date := date_trunc('month', v_day::timestamp)::date;
begin
  if v_day < v_anchor then
    v_month := (v_month - interval '1 month')::date;
  end if;
  period_start := billing.anchor_date(v_month, p_anchor_day)::timestamp at time zone p_timezone;
  period_end := billing.anchor_date((v_month + interval '1 month')::date, p_anchor_day)::timestamp at time zone p_timezone;
end;
$$;

-- The period that contains p_at: as it is stored, or as it would be made. Reads only.
create or replace function billing.find_period(
  p_organization_id uuid, p_at timestamptz,
  out period_start timestamptz, out period_end timestamptz, out timezone text, out status text
)
language plpgsql
stable
set search_path = ''
as $$
begin
  select p.period_start, p.period_end, p.timezone, p.status into period_start, period_end, timezone, status
  from billing.billing_periods p
  where p.organization_id = p_organization_id
    and p.period_start <= p_at
    and p.period_end > p_at;
  if found then
    return;
  end if;
  select b.period_start, b.period_end, o.billing_timezone into period_start, period_end, timezone
  from tenancy.organizations o, billing.period_bounds(o.billing_timezone, o.billing_anchor_day, p_at) b
  where o.id = p_organization_id;
end;
$$;

-- Makes what is missing so that every moment from p_from to p_until lies in a period. Many writers may do so at once: who comes
-- second waits for the first one's row and goes on from there, hence the loops that look again.
create or replace function billing.ensure_periods(p_organization_id uuid, p_from timestamptz, p_until timestamptz)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_timezone text;
  v_anchor_day integer;
  v_first timestamptz;
  v_last timestamptz;
begin
  -- The usual case: one look into an index.
  if exists (
    select from billing.billing_periods p
    where p.organization_id = p_organization_id
      and p.period_start <= p_from
      and p.period_end > p_until
  ) then
    return;
  end if;

  select billing_timezone, billing_anchor_day into strict v_timezone, v_anchor_day
  from tenancy.organizations
  where id = p_organization_id;

  insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
  select p_organization_id, b.period_start, b.period_end, v_timezone
  from billing.period_bounds(v_timezone, v_anchor_day, p_until) b
  where not exists (select from billing.billing_periods where organization_id = p_organization_id)
  on conflict do nothing;

  loop
    select min(period_start) into v_first
    from billing.billing_periods
    where organization_id = p_organization_id;
    exit when v_first <= p_from;
    -- The first one becomes the second. The new first one is there when the transaction ends, which is when the key is checked.
    set constraints billing.billing_periods_organization_id_previous_end_fkey deferred;
    update billing.billing_periods
    set previous_end = period_start
    where organization_id = p_organization_id
      and period_start = v_first
      and previous_end is null;
    if found then
      insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
      select p_organization_id, b.period_start, v_first, v_timezone
      from billing.period_bounds(v_timezone, v_anchor_day, v_first - interval '1 microsecond') b;
    end if;
    set constraints billing.billing_periods_organization_id_previous_end_fkey immediate;
  end loop;

  loop
    select max(period_end) into v_last
    from billing.billing_periods
    where organization_id = p_organization_id;
    exit when v_last > p_until;
    insert into billing.billing_periods (organization_id, period_start, period_end, previous_end, timezone)
    select p_organization_id, v_last, b.period_end, v_last, v_timezone
    from billing.period_bounds(v_timezone, v_anchor_day, v_last) b
    on conflict do nothing;
  end loop;
end;
$$;

grant execute on function billing.anchor_date(date, integer), billing.period_bounds(text, integer, timestamptz),
  billing.find_period(uuid, timestamptz), billing.ensure_periods(uuid, timestamptz, timestamptz) to goldleaves_kernel;
