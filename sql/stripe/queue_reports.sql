-- What is to be reported to Stripe. metering.roll_up() queues the hours that it adds to; here is queued what it could not know of: usage from
-- before a customer was linked or a meter registered, and what grows with time alone. A row more does no harm.

-- Hours of which reports were not made, or not of all. p_organization_id null: of everybody; what it does not find is in step.
create or replace function stripe.queue_missing_reports(p_organization_id uuid default null)
returns bigint
language sql
volatile
set search_path = ''
as $$
  with periods as materialized (
    select b.organization_id, b.period_start, b.period_end, k.meter_code, m.aggregation
    from stripe.customers c
    join billing.billing_periods b on b.organization_id = c.organization_id
    cross join stripe.meters k
    join metering.meters m on m.code = k.meter_code
    where c.deleted_at is null
      and (p_organization_id is null or c.organization_id = p_organization_id)
      and b.invoice_mode = 'stripe_meters'
      and b.period_start <= now()
      -- Stripe takes nothing that is older.
      and b.period_end > now() - interval '35 days'
      and not exists (
        select
        from stripe.report_periods r
        where r.organization_id = b.organization_id
          and r.meter_code = k.meter_code
          and r.period_start = b.period_start
          and r.closed_at is not null
      )
  ),
  hours as (
    select p.organization_id, p.meter_code, h.bucket_start
    from periods p
    cross join lateral (
      select r.bucket_start, sum(case p.aggregation when 'count' then r.events else r.value end) as quantity
      from metering.usage_rollups r
      where r.organization_id = p.organization_id
        and r.grain = 'hour'
        and r.meter_code = p.meter_code
        and r.bucket_start >= p.period_start
        and r.bucket_start < p.period_end
        and r.meter_version > 0
      group by 1
    ) as h
    where p.aggregation in ('sum', 'count')
      and h.quantity <> coalesce((
        select u.quantity
        from stripe.reported_usage u
        where u.organization_id = p.organization_id
          and u.meter_code = p.meter_code
          and u.bucket_start = h.bucket_start
      ), 0)
    union all
    -- What does not add up is reported in the hour of its last change.
    select p.organization_id, p.meter_code, h.bucket_start
    from periods p
    cross join lateral (
      select r.bucket_start
      from metering.usage_rollups r
      where r.organization_id = p.organization_id
        and r.grain = 'hour'
        and r.meter_code = p.meter_code
        and r.bucket_start >= p.period_start
        and r.bucket_start < p.period_end
        and r.meter_version > 0
      order by 1 desc
      limit 1
    ) as h
    where p.aggregation in ('max', 'min', 'latest', 'unique')
      and not exists (
        select
        from stripe.reported_usage u
        where u.organization_id = p.organization_id
          and u.meter_code = p.meter_code
          and u.bucket_start = p.period_start
      )
    union all
    -- What is stored costs more each hour.
    select p.organization_id, p.meter_code, greatest(p.period_start, date_trunc('hour', least(now(), p.period_end) - interval '1 hour', 'UTC'))
    from periods p
    where p.aggregation = 'weighted_sum'
      and exists (
        select
        from metering.usage_rollups r
        where r.organization_id = p.organization_id
          and r.grain = 'period'
          and r.meter_code = p.meter_code
          and r.bucket_start <= p.period_start
          and r.meter_version > 0
      )
  ),
  queued as (
    insert into stripe.report_queue (organization_id, meter_code, bucket_start, generation, xid)
    select h.organization_id, h.meter_code, h.bucket_start, coalesce(o.generation, 0), coalesce(o.xid, '0'::xid8)
    from hours h
    left join stripe.report_positions o on o.organization_id = h.organization_id and o.meter_code = h.meter_code
    where not exists (
      select
      from stripe.report_queue q
      where q.organization_id = h.organization_id
        and q.meter_code = h.meter_code
        and q.bucket_start = h.bucket_start
    )
    returning 1
  )
  select count(*) from queued
$$;

create or replace function stripe.queue_reports_of_customer()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform stripe.queue_missing_reports(new.organization_id);
  return null;
end;
$$;

create or replace function stripe.queue_reports_of_meter()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform stripe.queue_missing_reports();
  return null;
end;
$$;

-- Each rollup adds a row an hour that has changed: one of them is enough, that of the oldest position. Rows that somebody holds are left: who
-- makes reports removes what was seen, and what came later has to stay.
create or replace function stripe.compact_report_queue()
returns void
language sql
volatile
set search_path = ''
as $$
  with held as materialized (
    select q.organization_id, q.id, q.meter_code, q.bucket_start, q.generation, q.xid
    from stripe.report_queue q
    for update skip locked
  )
  delete from stripe.report_queue q
  using (
    select
      h.organization_id, h.id,
      row_number() over (partition by h.organization_id, h.meter_code, h.bucket_start order by h.generation, h.xid, h.id) as n
    from held h
  ) as n
  where n.n > 1
    and q.organization_id = n.organization_id
    and q.id = n.id
$$;

alter function stripe.queue_reports_of_customer() owner to goldleaves_kernel;
alter function stripe.queue_reports_of_meter() owner to goldleaves_kernel;
grant execute on function stripe.queue_missing_reports(uuid), stripe.compact_report_queue() to goldleaves_kernel;

create or replace trigger queue_reports_of_insert after insert on stripe.customers
  for each row when (new.deleted_at is null) execute function stripe.queue_reports_of_customer();
create or replace trigger queue_reports_of_insert after insert on stripe.meters
  for each statement execute function stripe.queue_reports_of_meter();
