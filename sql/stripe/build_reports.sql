-- Reports of usage are made of hours that have changed: what an hour comes to now, less what reports were made of, in whole units. What is left
-- of a unit is carried within the billing period, and so is what was reported too much. So at every moment, of each period:
--   recorded = units of reports that are not canceled + carried - passed on - credited.
-- Values are those that the meter reads, and become units at the end alone: thirds of a unit add up to one.
--
-- Only of periods whose invoice is made of meter events: what of others is billed here is never told to Stripe.

create or replace function stripe.report_lock_key(p_organization_id uuid, p_meter_code text)
returns bigint
language sql
immutable
parallel safe
set search_path = ''
as $$ select pg_catalog.hashtextextended('goldleaves.stripe.reports.' || p_organization_id || '.' || p_meter_code, 0) $$;

-- Stripe counts an identifier once. It is made of what the report is, so that it is the same however often it is sent, and from wherever.
create or replace function stripe.report_identifier(p_organization_id uuid, p_meter_code text, p_bucket_start timestamptz, p_sequence integer)
returns text
language sql
immutable
parallel safe
set search_path = ''
as $$
  select 'gl_' || left(
    encode(
      sha256(convert_to(
        jsonb_build_array(p_organization_id, p_meter_code, extract(epoch from p_bucket_start)::bigint, p_sequence)::text, 'UTF8'
      )),
      'hex'
    ),
    48
  )
$$;

-- An hour is reported when it is over and rolled up, and what comes to it later after some minutes: so an hour is few reports. Inlined.
create or replace function stripe.is_report_due(p_bucket_start timestamptz, p_queued_at timestamptz)
returns boolean
language sql
stable
parallel safe
as $$ select p_bucket_start <= now() - interval '61 minutes' and p_queued_at <= now() - interval '5 minutes' $$;

-- Of one meter and period, the hours that are asked for. The caller holds the lock of the meter. p_generation, p_xid: what has changed was
-- recorded from there on. Returns how many reports were made.
create or replace function stripe.report_hours(
  p_organization_id uuid, p_meter_code text, p_period_start timestamptz, p_buckets timestamptz[], p_generation integer, p_xid xid8
)
returns integer
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_period billing.billing_periods;
  v_meter metering.meters;
  v_customer_id text;
  v_event_name text;
  v_unit_value numeric;
  v_before numeric;
  v_carried numeric;
  v_made integer;
  v_rest integer;
begin
  select * into strict v_period
  from billing.billing_periods b
  where b.organization_id = p_organization_id and b.period_start = p_period_start;
  select * into strict v_meter from metering.meters m where m.code = p_meter_code;
  select c.id into strict v_customer_id from stripe.customers c where c.organization_id = p_organization_id and c.deleted_at is null;
  select k.event_name into strict v_event_name from stripe.meters k where k.meter_code = p_meter_code;
  v_unit_value := metering.value_of_unit(v_meter.aggregation, v_meter.unit_size);

  insert into stripe.report_periods (organization_id, meter_code, period_start)
  values (p_organization_id, p_meter_code, p_period_start)
  on conflict do nothing;
  select r.carried into strict v_before
  from stripe.report_periods r
  where r.organization_id = p_organization_id and r.meter_code = p_meter_code and r.period_start = p_period_start
  for update;

  with recorded as materialized (
    select h.bucket_start, h.bucket_start as counted_in, h.quantity
    from (
      select b.bucket_start, coalesce(sum(case v_meter.aggregation when 'count' then r.events else r.value end), 0) as quantity
      from (select distinct u.bucket_start from unnest(p_buckets) as u (bucket_start)) as b
      left join metering.usage_rollups r
        on r.organization_id = p_organization_id
        and r.grain = 'hour'
        and r.meter_code = p_meter_code
        and r.bucket_start = b.bucket_start
        and r.meter_version > 0
      group by 1
    ) as h
    where v_meter.aggregation in ('sum', 'count')
    union all
    -- A greatest value of hours is not the sum of them: the period as a whole, in the hour of the last change.
    select
      max(u.bucket_start), p_period_start,
      greatest(
        stripe.measured_in_period(p_organization_id, p_meter_code, v_meter.aggregation, v_period.period_start, v_period.period_end),
        case when not v_meter.allow_negative then 0 end
      )
    from unnest(p_buckets) as u (bucket_start)
    where v_meter.aggregation not in ('sum', 'count')
    having count(*) > 0
  ),
  changed as materialized (
    select r.bucket_start, r.counted_in, r.quantity, r.quantity - coalesce(u.quantity, 0) as added
    from recorded r
    left join stripe.reported_usage u
      on u.organization_id = p_organization_id and u.meter_code = p_meter_code and u.bucket_start = r.counted_in
  ),
  kept as (
    insert into stripe.reported_usage as u (organization_id, meter_code, bucket_start, quantity)
    select p_organization_id, p_meter_code, c.counted_in, c.quantity
    from changed c
    where c.added <> 0
    on conflict (organization_id, meter_code, bucket_start) do update set quantity = excluded.quantity
  ),
  -- Hour after hour as many units as are whole by then, and were not reported in an hour before.
  reached as (
    select
      c.bucket_start,
      greatest(max(div(c.summed, v_unit_value)) over (order by c.bucket_start), 0) as units
    from (select h.bucket_start, v_before + sum(h.added) over (order by h.bucket_start) as summed from changed h) as c
  ),
  made as (
    insert into stripe.meter_event_reports as r (
      organization_id, meter_code, bucket_start, sequence, quantity, identifier, customer_id, event_name, period_start, generation, xid
    )
    select
      p_organization_id, p_meter_code, s.bucket_start, n.sequence, s.units,
      stripe.report_identifier(p_organization_id, p_meter_code, s.bucket_start, n.sequence), v_customer_id, v_event_name, p_period_start,
      p_generation, p_xid
    from (select h.bucket_start, h.units - lag(h.units, 1, 0::numeric) over (order by h.bucket_start) as units from reached h) as s
    cross join lateral (select stripe.next_report(p_organization_id, p_meter_code, s.bucket_start) as sequence) as n
    where s.units > 0
    returning r.quantity
  )
  select
    v_before + (select coalesce(sum(c.added), 0) from changed c) - coalesce(sum(m.quantity), 0) * v_unit_value, count(*)
  into v_carried, v_made
  from made m;

  if v_carried < 0 then
    select t.carried, t.made into v_carried, v_rest
    from stripe.take_back(p_organization_id, p_meter_code, p_period_start, v_carried, v_unit_value) t;
    v_made := v_made + v_rest;
  end if;
  update stripe.report_periods r
  set carried = v_carried
  where r.organization_id = p_organization_id
    and r.meter_code = p_meter_code
    and r.period_start = p_period_start
    and r.carried <> v_carried;
  return v_made;
end;
$$;

create or replace function stripe.next_report(p_organization_id uuid, p_meter_code text, p_bucket_start timestamptz)
returns integer
language sql
stable
set search_path = ''
as $$
  select coalesce(max(r.sequence), 0) + 1
  from stripe.meter_event_reports r
  where r.organization_id = p_organization_id
    and r.meter_code = p_meter_code
    and r.bucket_start = p_bucket_start
$$;

-- What a meter comes to in a period, over all who pay; as the meter reads it.
create or replace function stripe.measured_in_period(
  p_organization_id uuid, p_meter_code text, p_aggregation text, p_period_start timestamptz, p_period_end timestamptz
)
returns numeric
language sql
stable
set search_path = ''
as $$
  select coalesce(sum(u.quantity), 0)
  from metering.measure(
    p_organization_id, array[p_period_start, p_period_end], '{}', jsonb_build_object('meter', p_meter_code),
    p_as_values => true, p_together => p_aggregation <> 'weighted_sum'
  ) u
  where u.metered
$$;

-- What was reported too much: first reports that Stripe has not got, then those that it may still be told to cancel, each time the smallest one that
-- is enough, else the largest. What is too much of them is reported anew. p_carried is below zero, and comes back with what was taken back;
-- it stays below when nothing is left to take.
create or replace function stripe.take_back(
  p_organization_id uuid, p_meter_code text, p_period_start timestamptz, p_carried numeric, p_unit_value numeric, out carried numeric,
  out made integer
)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_report stripe.meter_event_reports;
  v_units numeric;
begin
  carried := p_carried;
  made := 0;
  while carried < 0 loop
    select r.* into v_report
    from stripe.meter_event_reports r
    where r.organization_id = p_organization_id
      and r.meter_code = p_meter_code
      and r.period_start = p_period_start
      and (
        r.status = 'pending' and r.first_sent_at is null
        or r.status = 'rejected'
        -- Within 24 hours of its receipt, and some of them pass until it is asked.
        or r.status = 'acknowledged' and r.acknowledged_at > clock_timestamp() - interval '23 hours' and not r.is_kept
      )
    order by
      r.status = 'acknowledged', r.quantity * p_unit_value < -carried,
      case when r.quantity * p_unit_value < -carried then -r.quantity else r.quantity end, r.bucket_start, r.sequence
    limit 1
    for update skip locked;
    exit when not found;
    update stripe.meter_event_reports r
    set
      status = case r.status when 'acknowledged' then 'canceling' else 'canceled' end,
      attempts = case r.status when 'acknowledged' then 0 else r.attempts end,
      next_attempt_at = clock_timestamp()
    where r.identifier = v_report.identifier;
    carried := carried + v_report.quantity * p_unit_value;
  end loop;

  v_units := div(carried, p_unit_value);
  if v_units > 0 then
    insert into stripe.meter_event_reports (
      organization_id, meter_code, bucket_start, sequence, quantity, identifier, customer_id, event_name, period_start, generation, xid
    )
    select
      p_organization_id, p_meter_code, v_report.bucket_start, n.sequence, v_units,
      stripe.report_identifier(p_organization_id, p_meter_code, v_report.bucket_start, n.sequence), c.id, k.event_name, p_period_start,
      v_report.generation, v_report.xid
    from stripe.next_report(p_organization_id, p_meter_code, v_report.bucket_start) as n (sequence)
    join stripe.customers c on c.organization_id = p_organization_id and c.deleted_at is null
    join stripe.meters k on k.meter_code = p_meter_code;
    carried := carried - v_units * p_unit_value;
    made := 1;
  end if;
end;
$$;

-- Of one meter what is queued. What others queue meanwhile stays for the next time. Returns how many reports were made, null when somebody else
-- is at it.
create or replace function stripe.report_meter(p_organization_id uuid, p_meter_code text, p_also_unended boolean)
returns integer
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_position metering.rollup_position;
  v_queued stripe.report_queue[];
  v_period record;
  v_made integer := 0;
begin
  if not pg_try_advisory_xact_lock(stripe.report_lock_key(p_organization_id, p_meter_code)) then
    return null;
  end if;
  -- Read before the queue: what was recorded below it is rolled up and queued by now.
  select * into strict v_position from metering.rollup_position;
  with seen as materialized (
    select q.organization_id, q.id
    from stripe.report_queue q
    where q.organization_id = p_organization_id
      and q.meter_code = p_meter_code
      and (p_also_unended or stripe.is_report_due(q.bucket_start, q.queued_at))
    for update skip locked
  ),
  taken as (
    delete from stripe.report_queue q
    using seen s
    where q.organization_id = s.organization_id
      and q.id = s.id
    returning q.*
  )
  select array_agg(t::stripe.report_queue) into v_queued from taken t;

  for v_period in
    select
      b.period_start, array_agg(distinct q.bucket_start) as buckets,
      (array_agg(q.generation order by q.generation, q.xid))[1] as generation, (array_agg(q.xid order by q.generation, q.xid))[1] as xid
    from unnest(v_queued) q
    join billing.billing_periods b
      on b.organization_id = p_organization_id and b.period_start <= q.bucket_start and b.period_end > q.bucket_start
    where b.invoice_mode = 'stripe_meters'
    group by 1
    order by 1
  loop
    v_made := v_made + stripe.report_hours(
      p_organization_id, p_meter_code, v_period.period_start, v_period.buckets, v_period.generation, v_period.xid
    );
  end loop;
  perform stripe.move_report_position(p_organization_id, p_meter_code, v_position.generation, v_position.xid);
  return v_made;
end;
$$;

-- Reports were made of what was recorded below a position, but for what is still queued.
create or replace function stripe.move_report_position(p_organization_id uuid, p_meter_code text, p_generation integer, p_xid xid8)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_generation integer;
  v_xid xid8;
begin
  select s.generation, s.xid into v_generation, v_xid
  from (
    select p_generation as generation, p_xid as xid
    union all
    select q.generation, q.xid
    from stripe.report_queue q
    where q.organization_id = p_organization_id
      and q.meter_code = p_meter_code
  ) as s
  order by s.generation, s.xid
  limit 1;
  insert into stripe.report_positions as o (organization_id, meter_code, generation, xid)
  values (p_organization_id, p_meter_code, v_generation, v_xid)
  on conflict (organization_id, meter_code) do update
  set generation = excluded.generation, xid = excluded.xid
  where (o.generation, o.xid) < (excluded.generation, excluded.xid);
  perform stripe.move_report_mark(p_organization_id, p_meter_code);
end;
$$;

-- What Stripe has acknowledged is posted, up to the first report that it has not. Never back. And only of periods that are told to it: which those
-- are stays as it is for all that lies below the mark.
create or replace function stripe.move_report_mark(p_organization_id uuid, p_meter_code text)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into stripe.report_marks as k (organization_id, meter_code, acknowledged_generation, acknowledged_xid, reported)
  select
    p_organization_id, p_meter_code, s.generation, s.xid,
    (
      select coalesce(range_agg(tstzrange(b.period_start, b.period_end)), '{}')
      from billing.billing_periods b
      where b.organization_id = p_organization_id
        and b.invoice_mode = 'stripe_meters'
    )
  from (
    select o.generation, o.xid
    from stripe.report_positions o
    where o.organization_id = p_organization_id
      and o.meter_code = p_meter_code
    union all
    select r.generation, r.xid
    from stripe.meter_event_reports r
    where r.organization_id = p_organization_id
      and r.meter_code = p_meter_code
      and r.status in ('pending', 'rejected', 'uncertain')
  ) as s
  where exists (select from stripe.report_positions o where o.organization_id = p_organization_id and o.meter_code = p_meter_code)
  order by s.generation, s.xid
  limit 1
  on conflict (organization_id, meter_code) do update
  set
    acknowledged_generation = excluded.acknowledged_generation, acknowledged_xid = excluded.acknowledged_xid, reported = excluded.reported
  where (k.acknowledged_generation, k.acknowledged_xid) < (excluded.acknowledged_generation, excluded.acknowledged_xid)
$$;

-- p_is_live: whether our key is one of live mode, which knows no customers of test mode. p_also_unended: also hours that go on, as somebody asks
-- for it. meters: how many were looked at; when that is p_most, there may be more. made: how many reports.
create or replace function stripe.build_reports(
  p_is_live boolean, p_most integer, p_organization_id uuid default null, p_also_unended boolean default false, out meters integer, out made integer
)
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
-- Plans are made while the tables are empty, and kept: each report would look through all others.
set enable_seqscan = off
as $$
declare
  v_queued record;
  -- A month at once is many hours: what is built is kept, and the rest is for the next call.
  v_until timestamptz := clock_timestamp() + interval '5 seconds';
begin
  meters := 0;
  made := 0;
  for v_queued in
    select distinct q.organization_id, q.meter_code
    from stripe.report_queue q
    join stripe.customers c on c.organization_id = q.organization_id and c.deleted_at is null and c.is_live = p_is_live
    join stripe.meters k on k.meter_code = q.meter_code
    where (p_organization_id is null or q.organization_id = p_organization_id)
      and (p_also_unended or stripe.is_report_due(q.bucket_start, q.queued_at))
    limit p_most
  loop
    if clock_timestamp() > v_until then
      meters := p_most;
      exit;
    end if;
    meters := meters + 1;
    made := made + coalesce(stripe.report_meter(v_queued.organization_id, v_queued.meter_code, p_also_unended), 0);
  end loop;
end;
$$;

alter function stripe.build_reports(boolean, integer, uuid, boolean) owner to goldleaves_kernel;
grant execute on function stripe.report_lock_key(uuid, text), stripe.report_identifier(uuid, text, timestamptz, integer),
  stripe.is_report_due(timestamptz, timestamptz), stripe.report_hours(uuid, text, timestamptz, timestamptz[], integer, xid8),
  stripe.next_report(uuid, text, timestamptz), stripe.measured_in_period(uuid, text, text, timestamptz, timestamptz),
  stripe.take_back(uuid, text, timestamptz, numeric, numeric), stripe.report_meter(uuid, text, boolean),
  stripe.move_report_position(uuid, text, integer, xid8), stripe.move_report_mark(uuid, text) to goldleaves_kernel;
grant execute on function stripe.build_reports(boolean, integer, uuid, boolean) to sidecar;
