-- Sending reports of usage, which the sidecar does outside of any transaction: it claims some, sends each, and says what came of it. Whoever dies in
-- between has its reports sent again, under the same identifiers, and Stripe counts each once. It remembers identifiers for a day: what may have
-- reached it and was not answered by then is not sent again, but looked at by people (uncertain).
--
-- Stripe takes one event at a time of a customer and meter, so those of one meter of an organization are claimed together, by one sidecar at a time.

-- When Stripe is told that usage happened: at the end of its hour, and not after its billing period. Within what Stripe takes, which is from 35 days
-- back to five minutes ahead, with room for sending it again.
create or replace function stripe.time_of_report(p_bucket_start timestamptz, p_period_end timestamptz)
returns timestamptz
language sql
stable
set search_path = ''
as $$
  select date_trunc('second', least(
    greatest(
      least(date_trunc('hour', p_bucket_start, 'UTC') + interval '1 hour', p_period_end) - interval '1 second', now() - interval '34 days'
    ),
    now() + interval '4 minutes'
  ))
$$;

-- Stripe closes an invoice an hour after its time, and what it is told of that time later is on none. So usage of a time that it has billed is told
-- to be of the beginning of the one that runs. Not what lies before a subscription, or in its trial: that is not charged.
create or replace function stripe.time_not_billed_yet(p_organization_id uuid, p_customer_id text, p_at timestamptz)
returns timestamptz
language sql
stable
set search_path = ''
as $$
  select coalesce(max(s.current_period_start), p_at)
  from stripe.subscriptions s
  where s.organization_id = p_organization_id
    and s.customer_id = p_customer_id
    and s.status not in ('canceled', 'incomplete', 'incomplete_expired')
    and s.current_period_start > p_at
    and s.current_period_start <= now() - interval '50 minutes'
    and coalesce(stripe.time_in(s.facts -> 'start_date'), stripe.time_in(s.facts -> 'created')) <= p_at
    and coalesce(s.trial_end, '-infinity') <= p_at
$$;

-- How long to wait after so many attempts that were not answered: in a day it is asked some thirty times.
create or replace function stripe.report_pause(p_attempts integer)
returns interval
language sql
immutable
parallel safe
set search_path = ''
as $$
  select ('{5 seconds,15 seconds,1 minute,5 minutes,15 minutes,30 minutes,1 hour}'::interval[])[least(greatest(p_attempts, 1), 7)]
$$;

-- p_meters: of how many meters of organizations; p_each: how many reports of each, in the order of their hours. One that is canceling is to be
-- canceled. attempts is what record_reports() wants to hear.
create or replace function stripe.claim_reports(
  p_is_live boolean, p_meters integer, p_each integer, p_lease interval, p_organization_id uuid default null
)
returns table (
  organization_id uuid, meter_code text, bucket_start timestamptz, sequence integer, quantity numeric, identifier text, customer_id text,
  event_name text, happened_at timestamptz, status text, attempts integer
)
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if not exists (select from stripe.meter_event_reports r where r.status in ('pending', 'canceling') and r.next_attempt_at <= now()) then
    return;
  end if;
  -- Claiming takes some milliseconds. Two at once would not see each other's.
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.stripe.claim_reports', 0));
  perform stripe.give_up_what_was_restored();
  return query
    with meters as materialized (
      select o.organization_id, o.meter_code
      from stripe.report_positions o
      where (p_organization_id is null or o.organization_id = p_organization_id)
        and exists (
          select
          from stripe.meter_event_reports r
          join stripe.customers c on c.organization_id = r.organization_id and c.id = r.customer_id
          where r.organization_id = o.organization_id
            and r.meter_code = o.meter_code
            and r.status in ('pending', 'canceling')
            and stripe.may_be_sent(r)
            and c.is_live = p_is_live
        )
        and not exists (
          select
          from stripe.meter_event_reports r
          where r.organization_id = o.organization_id
            and r.meter_code = o.meter_code
            and r.status in ('pending', 'canceling')
            and r.claimed_until > clock_timestamp()
        )
      limit p_meters
    ),
    due as materialized (
      select r.organization_id, r.meter_code, r.bucket_start, r.sequence
      from meters m
      cross join lateral (
        select d.organization_id, d.meter_code, d.bucket_start, d.sequence
        from stripe.meter_event_reports d
        join stripe.customers c on c.organization_id = d.organization_id and c.id = d.customer_id
        where d.organization_id = m.organization_id
          and d.meter_code = m.meter_code
          and d.status in ('pending', 'canceling')
          and stripe.may_be_sent(d)
          and c.is_live = p_is_live
        order by d.bucket_start, d.sequence
        limit p_each
        for update of d skip locked
      ) as r
    ),
    claimed as (
      update stripe.meter_event_reports r
      set
        claimed_until = clock_timestamp() + p_lease,
        attempts = r.attempts + 1,
        first_sent_at = coalesce(r.first_sent_at, clock_timestamp()),
        happened_at = coalesce(
          r.happened_at,
          stripe.time_not_billed_yet(r.organization_id, r.customer_id, stripe.time_of_report(r.bucket_start, b.period_end))
        )
      from due d
      join billing.billing_periods b
        on b.organization_id = d.organization_id and b.period_start <= d.bucket_start and b.period_end > d.bucket_start
      where r.organization_id = d.organization_id
        and r.meter_code = d.meter_code
        and r.bucket_start = d.bucket_start
        and r.sequence = d.sequence
      returning r.*
    )
    select
      c.organization_id, c.meter_code, c.bucket_start, c.sequence, c.quantity, c.identifier, c.customer_id, c.event_name, c.happened_at, c.status,
      c.attempts
    from claimed c
    order by c.organization_id, c.meter_code, c.bucket_start, c.sequence;
end;
$$;

-- Whether it is time for one, and not too late: Stripe would have forgotten its identifier. Inlined.
create or replace function stripe.may_be_sent(p_report stripe.meter_event_reports)
returns boolean
language sql
stable
parallel safe
as $$
  select p_report.next_attempt_at <= now()
    and (p_report.status <> 'pending' or p_report.first_sent_at is null or p_report.first_sent_at > now() - interval '23 hours')
$$;

-- What came of attempts: [{"identifier", "attempts", "outcome", "message", "pause": seconds}]. sent: Stripe has it, or has canceled it; refused: it
-- will not; busy: it has not done it yet; unknown: it may have. Whoever comes back after its lease, and somebody else went on, changes nothing.
create or replace function stripe.record_reports(p_outcomes jsonb)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_meter record;
begin
  with outcomes as materialized (
    select o.*
    from jsonb_to_recordset(p_outcomes) as o (identifier text, attempts integer, outcome text, message text, pause numeric)
  ),
  settled as (
    update stripe.meter_event_reports r
    set
      status = case
        when o.outcome = 'sent' then case r.status when 'canceling' then 'canceled' else 'acknowledged' end
        when o.outcome = 'refused' then case r.status when 'canceling' then 'acknowledged' else 'rejected' end
        else r.status
      end,
      is_kept = r.is_kept or r.status = 'canceling' and o.outcome = 'refused',
      acknowledged_at = case when r.status = 'pending' and o.outcome = 'sent' then clock_timestamp() else r.acknowledged_at end,
      attempts = case o.outcome when 'busy' then r.attempts - 1 else r.attempts end,
      first_sent_at = case when r.status = 'canceling' or o.outcome <> 'busy' or r.attempts > 1 then r.first_sent_at end,
      happened_at = case when r.status = 'canceling' or o.outcome <> 'busy' or r.attempts > 1 then r.happened_at end,
      next_attempt_at = clock_timestamp() + greatest(
        make_interval(secs => coalesce(o.pause, 0)::double precision),
        -- Not all of those that failed together come back together.
        case o.outcome when 'unknown' then stripe.report_pause(r.attempts) * (1 + random() * 0.2) else '0' end
      ),
      claimed_until = null,
      last_error = case when o.outcome <> 'sent' then left(o.message, 500) end
    from outcomes o
    where r.identifier = o.identifier
      and r.attempts = o.attempts
      and r.status in ('pending', 'canceling')
    returning r.organization_id, r.meter_code, r.period_start, r.quantity, r.status, r.is_kept, o.outcome
  ),
  -- What Stripe does not take back counts again, and is too much.
  kept as (
    update stripe.report_periods p
    set carried = p.carried - k.units * metering.value_of_unit(m.aggregation, m.unit_size)
    from (
      select s.organization_id, s.meter_code, s.period_start, sum(s.quantity) as units
      from settled s
      where s.outcome = 'refused'
        and s.status = 'acknowledged'
      group by 1, 2, 3
    ) as k
    join metering.meters m on m.code = k.meter_code
    where p.organization_id = k.organization_id
      and p.meter_code = k.meter_code
      and p.period_start = k.period_start
  )
  select count(*) into v_meter from settled;

  for v_meter in
    select distinct r.organization_id, r.meter_code
    from jsonb_to_recordset(p_outcomes) as o (identifier text, outcome text)
    join stripe.meter_event_reports r on r.identifier = o.identifier
    where o.outcome = 'sent'
    order by 1, 2
  loop
    perform stripe.move_report_mark(v_meter.organization_id, v_meter.meter_code);
  end loop;
end;
$$;

-- Null: never, as far as we know.
create or replace function stripe.restored_at()
returns timestamptz
language sql
stable
set search_path = ''
as $$ select max(g.began_at) from metering.generations g where g.generation > 1 $$;

-- A database that was restored does not know what was sent after the backup. Usage of hours from before is sent again while Stripe is sure to
-- know its identifiers, since nobody sends an hour before it has begun; and later only when people have said so.
create or replace function stripe.give_up_what_was_restored()
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_restored_at timestamptz := stripe.restored_at();
begin
  if v_restored_at is not null then
    update stripe.meter_event_reports r
    set
      status = 'uncertain', claimed_until = null,
      last_error = 'it may have been sent before the database was restored, so long ago that Stripe would count it again'
    from stripe.report_positions o
    where r.status = 'pending'
      and r.bucket_start < least(v_restored_at, now() - stripe.key_lasts())
      and (r.claimed_until is null or r.claimed_until < clock_timestamp())
      and o.organization_id = r.organization_id
      and o.meter_code = r.meter_code
      and coalesce(o.resent_at < v_restored_at, true);
  end if;
end;
$$;

-- Nobody knows of these whether Stripe has them, and it is too late to send them again under their identifiers.
create or replace function stripe.give_up_reports()
returns void
language sql
volatile
set search_path = ''
as $$
  update stripe.meter_event_reports r
  set status = 'uncertain', claimed_until = null, last_error = coalesce(r.last_error, 'it was sent, and no answer was recorded')
  where r.status = 'pending'
    and r.first_sent_at <= now() - interval '23 hours'
    and r.next_attempt_at <= now()
    and (r.claimed_until is null or r.claimed_until < clock_timestamp())
$$;

-- Reports that Stripe rejected, or of which nobody knows, are canceled here, and made anew under other identifiers. p_statuses: rejected, uncertain.
-- Who sends uncertain ones again has looked at Stripe first: what is there would count twice. Returns how many; the audit log says who did it.
create or replace function stripe.resend_reports(p_organization_id uuid, p_statuses text[])
returns bigint
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_meter record;
  v_reports bigint := 0;
begin
  for v_meter in
    select r.organization_id, r.meter_code, count(*) as reports
    from stripe.meter_event_reports r
    where r.status = any (p_statuses)
      and r.status in ('rejected', 'uncertain')
      and (p_organization_id is null or r.organization_id = p_organization_id)
    group by 1, 2
    order by 1, 2
  loop
    with canceled as (
      update stripe.meter_event_reports r
      set status = 'canceled'
      where r.organization_id = v_meter.organization_id
        and r.meter_code = v_meter.meter_code
        and r.status = any (p_statuses)
        and r.status in ('rejected', 'uncertain')
      returning r.*
    ),
    carried as (
      update stripe.report_periods p
      set carried = p.carried + c.units * metering.value_of_unit(m.aggregation, m.unit_size)
      from (select k.period_start, sum(k.quantity) as units from canceled k group by 1) as c
      cross join metering.meters m
      where m.code = v_meter.meter_code
        and p.organization_id = v_meter.organization_id
        and p.meter_code = v_meter.meter_code
        and p.period_start = c.period_start
    )
    insert into stripe.report_queue (organization_id, meter_code, bucket_start, generation, xid, queued_at)
    select c.organization_id, c.meter_code, c.bucket_start, c.generation, c.xid, c.created_at
    from canceled c;
    update stripe.report_positions o
    set resent_at = clock_timestamp()
    where o.organization_id = v_meter.organization_id
      and o.meter_code = v_meter.meter_code
      and 'uncertain' = any (p_statuses);
    perform audit.append(
      v_meter.organization_id, 'stripe_reports.resent', 'meter', v_meter.meter_code,
      jsonb_build_object('statuses', p_statuses), jsonb_build_object('reports', v_meter.reports), null
    );
    v_reports := v_reports + v_meter.reports;
  end loop;
  return v_reports;
end;
$$;

-- Each minute, by one sidecar at a time: what time alone brings. p_also_sweep: also hours that nobody has queued, as each hour.
create or replace function stripe.tend_reports(p_is_live boolean, p_also_sweep boolean)
returns void
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
as $$
begin
  if not pg_try_advisory_xact_lock(hashtextextended('goldleaves.stripe.tend_reports', 0)) then
    return;
  end if;
  perform stripe.give_up_reports();
  perform stripe.compact_report_queue();
  if p_also_sweep then
    perform stripe.queue_missing_reports();
  end if;
  perform stripe.settle_report_periods(p_is_live);
end;
$$;

-- What waits, and what did not arrive: for metrics, and for whoever has asked to report now, who is told whose invoice counts, too.
create or replace function stripe.report_backlog(p_organization_id uuid default null)
returns table (pending bigint, rejected bigint, uncertain bigint, oldest_seconds double precision, invoice_mode text)
language sql
stable
security definer
set search_path = ''
as $$
  select
    count(*) filter (where r.status in ('pending', 'canceling')),
    count(*) filter (where r.status = 'rejected'),
    count(*) filter (where r.status = 'uncertain'),
    coalesce(
      extract(epoch from greatest(clock_timestamp() - min(r.created_at) filter (where r.status in ('pending', 'canceling')), '0')), 0
    )::double precision,
    billing.invoice_mode_now(p_organization_id)
  from stripe.meter_event_reports r
  where r.status in ('pending', 'canceling', 'rejected', 'uncertain')
    and (p_organization_id is null or r.organization_id = p_organization_id)
$$;

alter function stripe.claim_reports(boolean, integer, integer, interval, uuid) owner to goldleaves_kernel;
alter function stripe.record_reports(jsonb) owner to goldleaves_kernel;
alter function stripe.tend_reports(boolean, boolean) owner to goldleaves_kernel;
alter function stripe.report_backlog(uuid) owner to goldleaves_kernel;
grant execute on function stripe.time_of_report(timestamptz, timestamptz),
  stripe.time_not_billed_yet(uuid, text, timestamptz), stripe.report_pause(integer),
  stripe.may_be_sent(stripe.meter_event_reports), stripe.restored_at(), stripe.give_up_what_was_restored(), stripe.give_up_reports(),
  stripe.resend_reports(uuid, text[]) to goldleaves_kernel;
grant execute on function stripe.claim_reports(boolean, integer, integer, interval, uuid), stripe.record_reports(jsonb),
  stripe.tend_reports(boolean, boolean), stripe.report_backlog(uuid) to sidecar;
