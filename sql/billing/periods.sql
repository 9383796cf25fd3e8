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

-- The first moment of the anchor's day, in the month of p_month.
create or replace function billing.anchor_instant(p_month date, p_anchor_day integer, p_timezone text)
returns timestamptz
language sql
immutable
parallel safe
set search_path = ''
as $$ select billing.anchor_date(p_month, p_anchor_day)::timestamp at time zone p_timezone $$;

-- The instants decide, not the calendar day: where clocks go back at midnight, an hour of the anchor's day comes before the
-- midnight that counts (the second one), and belongs to the period before.
create or replace function billing.period_bounds(
  p_timezone text, p_anchor_day integer, p_at timestamptz, out period_start timestamptz, out period_end timestamptz
)
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
declare
  v_month date := date_trunc('month', p_at at time zone p_timezone)::date;
  v_anchor timestamptz := billing.anchor_instant(v_month, p_anchor_day, p_timezone);
begin
  if v_anchor <= p_at then
    period_start := v_anchor;
    period_end := billing.anchor_instant((v_month + interval '1 month')::date, p_anchor_day, p_timezone);
  else
    period_start := billing.anchor_instant((v_month - interval '1 month')::date, p_anchor_day, p_timezone);
    period_end := v_anchor;
  end if;
end;
$$;

-- A period that begins at p_start ends with the first anchor that is two days away. One that begins at an anchor lasts until the next one; where
-- the organization has moved to another timezone or anchor it begins elsewhere, and what would be left of some hours, which is how
-- far timezones are apart, belongs to it: it would be billed a whole month's fee otherwise.
create or replace function billing.period_end_after(p_timezone text, p_anchor_day integer, p_start timestamptz)
returns timestamptz
language sql
immutable
parallel safe
set search_path = ''
as $$ select (billing.period_bounds(p_timezone, p_anchor_day, p_start + interval '48 hours')).period_end $$;

-- The same, of a period that ends at p_end.
create or replace function billing.period_start_before(p_timezone text, p_anchor_day integer, p_end timestamptz)
returns timestamptz
language sql
immutable
parallel safe
set search_path = ''
as $$ select (billing.period_bounds(p_timezone, p_anchor_day, p_end - interval '48 hours')).period_start $$;

-- How long the month is that a period is billed for: itself, unless a change of timezone or anchor has cut it short. Where a month begins in a
-- midnight that is skipped, it is an hour short of one, and whole all the same.
create or replace function billing.month_seconds(p_timezone text, p_start timestamptz, p_end timestamptz)
returns numeric
language sql
immutable
parallel safe
set search_path = ''
as $$
  select extract(epoch from case when p_end >= m.month_end - interval '3 hours' then p_end else m.month_end end - p_start)
  from (select (p_start at time zone p_timezone + interval '1 month') at time zone p_timezone as month_end) as m
$$;

create or replace function billing.raise_no_organization(p_organization_id uuid)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT404',
    message = format('ORGANIZATION_NOT_FOUND: there is no organization %s', p_organization_id);
end;
$$;

-- The period that contains p_at: as it is stored, or as billing.ensure_periods() would make it; status is null then, unless it would be
-- made as a finalized one. Reads only.
create or replace function billing.find_period(
  p_organization_id uuid, p_at timestamptz,
  out period_start timestamptz, out period_end timestamptz, out timezone text, out status text
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_anchor_day integer;
  v_neighbour timestamptz;
begin
  select p.period_start, p.period_end, p.timezone, p.status into period_start, period_end, timezone, status
  from billing.billing_periods p
  where p.organization_id = p_organization_id
    and p.period_start <= p_at
    and p.period_end > p_at;
  if found then
    return;
  end if;

  select o.billing_timezone, o.billing_anchor_day, b.period_start, b.period_end into timezone, v_anchor_day, period_start, period_end
  from tenancy.organizations o
  cross join lateral billing.period_bounds(o.billing_timezone, o.billing_anchor_day, p_at) b
  where o.id = p_organization_id;

  -- There are no gaps: it comes after the last one, or before the first one, and next to them it fits.
  select max(p.period_end) into v_neighbour from billing.billing_periods p where p.organization_id = p_organization_id and p.period_end <= p_at;
  if v_neighbour is not null then
    if billing.period_end_after(timezone, v_anchor_day, v_neighbour) > p_at then
      period_start := v_neighbour;
      period_end := billing.period_end_after(timezone, v_anchor_day, v_neighbour);
    end if;
    return;
  end if;
  select p.period_start, case p.status when 'finalized' then p.status end into v_neighbour, status
  from billing.billing_periods p
  where p.organization_id = p_organization_id
  order by p.period_start
  limit 1;
  if billing.period_start_before(timezone, v_anchor_day, v_neighbour) <= p_at then
    period_start := billing.period_start_before(timezone, v_anchor_day, v_neighbour);
    period_end := v_neighbour;
  end if;
end;
$$;

-- Makes what is missing so that every moment from p_from to p_until lies in a period. With the first period what lies before it was closed
-- as well: what is made before a finalized one is finalized, without an invoice. Who makes periods of an organization is
-- alone with that: a writer that prepends and one that appends would wait for each other's rows. Writers outside READ COMMITTED do
-- not see what the lock waited for; they meet it as a conflict and fail with 40001, which is theirs to retry.
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
  v_status text;
  v_invoice_mode text;
begin
  -- The usual case: two looks into an index. There are no gaps, so the ends of the chain say it all.
  if exists (select from billing.billing_periods where organization_id = p_organization_id and period_start <= p_from)
    and exists (select from billing.billing_periods where organization_id = p_organization_id and period_end > p_until)
  then
    return;
  end if;

  -- A bound, so that one wrong year does not make thousands of periods. Two months more than events may be old.
  if p_from < metering.oldest_event_time() - interval '2 months' or p_until > now() + interval '2 years' then
    raise exception using
      errcode = 'PT400',
      message = format('TIME_OUT_OF_RANGE: billing periods reach from five years ago to two years ahead, not from %s to %s', p_from, p_until);
  end if;

  select billing_timezone, billing_anchor_day into v_timezone, v_anchor_day
  from tenancy.organizations
  where id = p_organization_id;
  if not found then
    perform billing.raise_no_organization(p_organization_id);
  end if;
  v_invoice_mode := billing.invoice_mode_now(p_organization_id);

  perform pg_advisory_xact_lock(hashtextextended('goldleaves.periods.' || p_organization_id, 0));

  insert into billing.billing_periods (organization_id, period_start, period_end, timezone, invoice_mode)
  select p_organization_id, b.period_start, b.period_end, v_timezone, v_invoice_mode
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
      and previous_end is null
    returning status into v_status;
    if found then
      insert into billing.billing_periods (organization_id, period_start, period_end, timezone, invoice_mode, status, finalized_at)
      select
        p_organization_id, billing.period_start_before(v_timezone, v_anchor_day, v_first), v_first, v_timezone, v_invoice_mode,
        case v_status when 'finalized' then v_status else 'open' end, case v_status when 'finalized' then clock_timestamp() end;
    end if;
    set constraints billing.billing_periods_organization_id_previous_end_fkey immediate;
  end loop;

  loop
    select max(period_end) into v_last
    from billing.billing_periods
    where organization_id = p_organization_id;
    exit when v_last > p_until;
    insert into billing.billing_periods (organization_id, period_start, period_end, previous_end, timezone, invoice_mode)
    values (
      p_organization_id, v_last, billing.period_end_after(v_timezone, v_anchor_day, v_last), v_last, v_timezone, v_invoice_mode
    )
    on conflict do nothing;
  end loop;
end;
$$;

-- Bounds of the period that a client names by its first day in the organization's timezone; null is the current one.
create or replace function billing.period_from_date(
  p_organization_id uuid, p_first_day date, out period_start timestamptz, out period_end timestamptz, out timezone text, out status text
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_at timestamptz;
begin
  if p_first_day is not null then
    -- As it is stored comes first: the organization may have moved to another timezone since.
    select p.period_start, p.period_end, p.timezone, p.status into period_start, period_end, timezone, status
    from billing.billing_periods p
    where p.organization_id = p_organization_id
      and p.period_start >= (p_first_day - 1)::timestamp at time zone 'UTC'
      and p.period_start < (p_first_day + 2)::timestamp at time zone 'UTC'
      and (p.period_start at time zone p.timezone)::date = p_first_day;
    if found then
      return;
    end if;

    if p_first_day not between (metering.oldest_event_time() - interval '2 months')::date and (now() + interval '1 year')::date then
      raise exception using
        errcode = 'PT404',
        message = format('PERIOD_NOT_FOUND: no billing period starts on %s', p_first_day),
        hint = 'GET /billing_periods lists them; start_date is what to send.';
    end if;
  end if;

  select coalesce(p_first_day::timestamp at time zone o.billing_timezone, now()) into v_at
  from tenancy.organizations o
  where o.id = p_organization_id;
  if not found then
    perform billing.raise_no_organization(p_organization_id);
  end if;

  select f.period_start, f.period_end, f.timezone, f.status into period_start, period_end, timezone, status
  from billing.find_period(p_organization_id, v_at) f;

  if p_first_day is not null and (period_start at time zone timezone)::date <> p_first_day then
    raise exception using
      errcode = 'PT404',
      message = format('PERIOD_NOT_FOUND: no billing period starts on %s', p_first_day),
      hint = format('The period around that day starts on %s.', (period_start at time zone timezone)::date);
  end if;
end;
$$;

grant execute on function billing.anchor_date(date, integer), billing.anchor_instant(date, integer, text),
  billing.period_bounds(text, integer, timestamptz), billing.period_end_after(text, integer, timestamptz),
  billing.period_start_before(text, integer, timestamptz), billing.find_period(uuid, timestamptz),
  billing.ensure_periods(uuid, timestamptz, timestamptz), billing.period_from_date(uuid, date),
  billing.month_seconds(text, timestamptz, timestamptz), billing.raise_no_organization(uuid) to goldleaves_kernel;
