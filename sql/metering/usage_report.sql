-- Usage over time, in hours, days, weeks or months of the organization's timezone.

-- What a report may have at most: buckets (three months of hours), and rows.
create or replace function metering.longest_report(out buckets integer, out rows integer)
language sql
immutable
parallel safe
set search_path = ''
as $$ select 2300, 100000 $$;

create or replace function metering.require_short_report(p_count bigint, p_most bigint, p_what text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  if p_count > p_most then
    raise exception using
      errcode = 'PT400',
      message = format('REPORT_TOO_LONG: it would have %s %s, and %s is the most', p_count, p_what, p_most),
      hint = 'Ask for less time, for longer buckets, for fewer dimensions, or for one meter by filter.';
  end if;
end;
$$;

-- A date is the midnight with which it begins, a time without an offset one of the timezone. In the query of a URL a + is a blank.
create or replace function metering.moment_in(p_name text, p_text text, p_timezone text)
returns timestamptz
language plpgsql
stable
set search_path = ''
as $$
declare
  v_text text := regexp_replace(p_text, ' ([0-9]{2}:[0-9]{2})$', '+\1');
  v_local boolean := v_text ~ '^[0-9-]{10}(T[0-9:.]{8,15})?$';
  v_full text := case when length(v_text) = 10 then v_text || 'T00:00:00' else v_text end || case when v_local then 'Z' else '' end;
  v_at timestamptz := metering.parse_time(v_full);
begin
  if v_at is null then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_RANGE: %s is neither a date nor a time', coalesce(p_name || ' ' || quote_literal(left(p_text, 40)), p_name)),
      hint = 'As in 2026-01-31, 2026-01-31T09:30:00 or 2026-01-31T09:30:00Z.';
  end if;
  return case when v_local then (v_at at time zone 'UTC') at time zone p_timezone else v_at end;
end;
$$;

-- The bounds of all buckets that have something of [p_from, p_until). An hour begins when the clock shows a full hour, or another one:
-- of the 25 hours of a day two are called alike, and where clocks move by half an hour one of them lasts that much longer or shorter. A
-- day that a timezone left out has no bucket.
create or replace function metering.report_bounds(p_from timestamptz, p_until timestamptz, p_granularity text, p_timezone text)
returns timestamptz[]
language sql
stable
set search_path = ''
as $$
  with moments as (
    select q.at, date_trunc('hour', q.at at time zone p_timezone) as hour, extract(minute from q.at at time zone p_timezone) as minute
    from generate_series(date_bin('15 minutes', p_from, '2000-01-01Z') - interval '2 hours', p_until + interval '2 hours', interval '15 minutes')
      as q (at)
    where p_granularity = 'hour'
  ),
  bounds as materialized (
    select h.at
    from (select m.*, lag(m.hour) over (order by m.at) as hour_before from moments m) as h
    where h.minute = 0 or h.hour <> h.hour_before
    union
    select d.first_day at time zone p_timezone
    from generate_series(
      date_trunc(p_granularity, p_from at time zone p_timezone) - ('1 ' || p_granularity)::interval,
      date_trunc(p_granularity, p_until at time zone p_timezone) + ('2 ' || p_granularity)::interval,
      ('1 ' || p_granularity)::interval
    ) as d (first_day)
    where p_granularity <> 'hour'
  )
  select array_agg(b.at order by b.at)
  from bounds b
  where b.at >= (select max(f.at) from bounds f where f.at <= p_from)
    and b.at <= (select min(u.at) from bounds u where u.at >= p_until)
$$;

create or replace function metering.usage_report(p_from text, p_to text, p_granularity text, p_group_by text[], p_filter jsonb)
returns table (
  bucket_start timestamptz, bucket_end timestamptz, meter text, unit text, groups jsonb, events bigint, quantity numeric
)
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_organization_id uuid := tenancy.current_org();
  v_most record := metering.longest_report();
  v_timezone text;
  v_from timestamptz;
  v_until timestamptz;
  v_bounds timestamptz[];
  v_filter jsonb;
  v_group_by text[];
begin
  perform tenancy.require_organization();
  perform tenancy.require_role_in('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read');

  select o.billing_timezone into v_timezone from tenancy.organizations o where o.id = v_organization_id;
  if v_timezone is null then
    perform billing.raise_no_organization(v_organization_id);
  end if;
  if p_granularity is null or p_granularity not in ('hour', 'day', 'week', 'month') then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_GRANULARITY: there is no granularity %s', coalesce(left(p_granularity, 40), 'null')),
      hint = 'It is hour, day, week or month.';
  end if;
  v_from := metering.moment_in('from', p_from, v_timezone);
  v_until := metering.moment_in('to', p_to, v_timezone);
  if v_from >= v_until then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_RANGE: from %s is not before to %s', p_from, p_to),
      hint = 'to is the first moment that does not belong to the report.';
  end if;
  perform metering.require_short_report(
    ceil(
      extract(epoch from v_until - v_from)
        / case p_granularity when 'hour' then 3600 when 'day' then 86400 when 'week' then 604800 else 2592000 end
    )::bigint,
    v_most.buckets, p_granularity || 's'
  );
  v_bounds := metering.report_bounds(v_from, v_until, p_granularity, v_timezone);
  v_filter := metering.checked_filter(p_filter);
  perform metering.require_known_meters(v_organization_id, v_bounds, v_filter);
  v_group_by := metering.checked_group_by(p_group_by, v_filter);

  return query
    with used as materialized (
      select
        u.bucket, u.meter_code, u.metered, u.groups,
        sum(u.events)::bigint as events,
        -- Around the moment from which an organization pays for itself a bucket has two payers.
        case (select m.aggregation from metering.meters m where u.metered and m.code = u.meter_code)
          when 'max' then max(u.quantity)
          when 'min' then min(u.quantity)
          when 'latest' then (array_agg(u.quantity order by u.billing_entity_id = v_organization_id desc))[1]
          else sum(u.quantity)
        end as quantity
      from metering.measure(v_organization_id, v_bounds, v_group_by, v_filter) u
      group by u.bucket, u.meter_code, u.metered, u.groups
    ),
    series as materialized (
      select distinct u.meter_code, u.metered, u.groups from used u
    ),
    fits as materialized (
      select metering.require_short_report(count(*) * (cardinality(v_bounds) - 1), v_most.rows, 'rows') from series
    )
    select
      v_bounds[b.n], v_bounds[b.n + 1], s.meter_code, m.unit, s.groups, coalesce(u.events, 0), coalesce(u.quantity, 0)
    from fits
    cross join generate_series(1, cardinality(v_bounds) - 1) as b (n)
    cross join series s
    left join used u on u.bucket = b.n and u.meter_code = s.meter_code and u.metered = s.metered and u.groups = s.groups
    left join metering.meters m on s.metered and m.code = s.meter_code
    order by b.n, s.metered desc, s.meter_code, s.groups;
end;
$$;

alter function metering.usage_report(text, text, text, text[], jsonb) owner to goldleaves_kernel;
grant execute on function metering.longest_report(), metering.require_short_report(bigint, bigint, text),
  metering.moment_in(text, text, text), metering.report_bounds(timestamptz, timestamptz, text, text) to goldleaves_kernel;
grant execute on function metering.usage_report(text, text, text, text[], jsonb) to member, platform_admin;
