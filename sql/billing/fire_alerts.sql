-- Alerts fire: what has crossed a threshold in a period is written into notifications.notification_log, once for ever. Which have fired is read there
-- and nowhere else, so several sidecars, a kill in the middle and usage that goes down and up again tell nothing twice; a new period has
-- keys of its own, and a limit or budget that was changed has thresholds of its own.
--
-- Usage is read as everybody reads it, with what is not rolled up yet.

-- The period that is to be looked at, p_period_start null: the current one. None where nobody is to be told: it is finalized, or long past, as an
-- import brings it, or the platform's, or of an organization that is gone. at: the moment whose plan and limits count.
create or replace function billing.period_of_alerts(
  p_organization_id uuid, p_period_start timestamptz, p_now timestamptz,
  out period_start timestamptz, out period_end timestamptz, out at timestamptz, out has_ended boolean
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_period record;
begin
  select f.* into v_period from billing.find_period(p_organization_id, coalesce(p_period_start, p_now)) f;
  if p_organization_id <> audit.platform()
    and v_period.status is distinct from 'finalized'
    and v_period.period_end > p_now - interval '1 month'
  then
    period_start := v_period.period_start;
    period_end := v_period.period_end;
    has_ended := v_period.period_end <= p_now;
    at := case when has_ended then v_period.period_end - interval '1 microsecond' else p_now end;
  end if;
end;
$$;

-- What is to be written into the log. Only what has not fired is read, and only what a threshold is there for: most organizations have neither
-- limits nor a budget, and of them nothing is read.
create or replace function billing.crossed_thresholds(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_at timestamptz, p_has_ended boolean
)
returns setof notifications.notification_log
language plpgsql
stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query
    with limits as materialized (
      select e.feature, e.kind, e.limit_value, e.meter_code, m.unit
      from billing.entitlements_of(p_organization_id, p_at) e
      left join metering.meters m on m.code = e.meter_code
      where e.limit_value > 0
        -- What there is at any time is known of now alone.
        and (e.kind = 'limit_per_period' or e.kind = 'limit' and not p_has_ended)
    ),
    thresholds as (
      select 'usage_alert' as kind, a.threshold_kind, a.threshold, a.meter_code, null as feature, null::numeric as limit_value, a.threshold as at
      from billing.usage_alerts a
      where a.organization_id = p_organization_id
        and a.threshold_kind = 'absolute'
      union all
      select 'usage_alert', a.threshold_kind, a.threshold, null, null, b.amount_cents, b.amount_cents * a.threshold / 100
      from billing.usage_alerts a
      join billing.budgets b on b.organization_id = a.organization_id
      where a.organization_id = p_organization_id
        and a.threshold_kind = 'percent_of_budget'
      union all
      select distinct 'usage_alert', a.threshold_kind, a.threshold, null, l.feature, l.limit_value, l.limit_value * a.threshold / 100
      from billing.usage_alerts a
      join limits l on a.feature is null or a.feature = l.feature
      where a.organization_id = p_organization_id
        and a.threshold_kind = 'percent_of_limit'
      union all
      select 'quota_reached', 'percent_of_limit', 100, null, l.feature, l.limit_value, l.limit_value
      from limits l
    ),
    waiting as materialized (
      select t.*
      from thresholds t
      where not exists (
        select
        from notifications.notification_log n
        where n.organization_id = p_organization_id
          and n.period_start = p_period_start
          and (n.kind, n.threshold_kind, n.threshold) = (t.kind, t.threshold_kind, t.threshold)
          and n.meter_code is not distinct from t.meter_code
          and n.feature is not distinct from t.feature
          and n.limit_value is not distinct from t.limit_value
      )
    ),
    found as (
      -- A feature's, as quotas read it …
      select null as meter_code, l.feature, l.unit,
        case l.kind when 'limit' then coalesce(u.counted, c.granted) else greatest(u.counted, c.granted) end as value
      from limits l
      cross join lateral billing.quota_period(p_organization_id, l.kind, p_at) p
      cross join lateral billing.counted_of_quota(
        p_organization_id, l.feature, l.kind, l.meter_code, p.period_start, p.period_end
      ) as u (counted)
      left join billing.quota_counters c on c.organization_id = p_organization_id and c.feature = l.feature and c.period_start = p.period_start
      where exists (select from waiting w where w.feature = l.feature)
      union all
      -- … a meter's …
      select k.code, null, k.unit, u.counted
      from metering.meters k
      cross join lateral billing.counted_of_quota(
        p_organization_id, null, 'limit_per_period', k.code, p_period_start, p_period_end
      ) as u (counted)
      where k.code in (select w.meter_code from waiting w)
      union all
      -- … and the amount, of all that the invoice would have before tax.
      select null, null, o.currency, r.amount_cents
      from tenancy.organizations o
      cross join lateral (
        select sum(c.amount_cents) as amount_cents
        from billing.rate_period(p_organization_id, p_period_start, p_period_end) c
      ) as r
      where o.id = p_organization_id
        and exists (select from waiting w where w.meter_code is null and w.feature is null)
    )
    select
      p_organization_id, ops.new_id(), w.kind, w.meter_code, w.feature, w.threshold_kind, w.threshold, p_period_start, f.value, w.limit_value,
      f.unit, clock_timestamp()
    from waiting w
    join found f on f.meter_code is not distinct from w.meter_code and f.feature is not distinct from w.feature
    where f.value > 0
      and f.value >= w.at;
end;
$$;

create or replace function billing.tell_quota_reached(p_reached notifications.notification_log)
returns void
language sql
volatile
set search_path = ''
set timezone = 'UTC'
as $$
  select notifications.enqueue_webhook(
    p_reached.organization_id, 'quota.reached',
    jsonb_build_object(
      'organization_id', p_reached.organization_id, 'feature', p_reached.feature, 'kind', e.kind, 'enforcement', e.enforcement,
      'limit', p_reached.limit_value, 'used', p_reached.value, 'unit', p_reached.unit, 'plan', e.plan_code,
      'period_start', p.period_start, 'period_end', p.period_end
    )
  )
  from billing.find_period(p_reached.organization_id, p_reached.period_start) p
  left join billing.entitlements_of(p_reached.organization_id, least(clock_timestamp(), p.period_end - interval '1 microsecond')) e
    on e.feature = p_reached.feature
$$;

-- For the sidecar: looks at organizations that are queued, and tells what has crossed a threshold. Any number of sidecars may call it at once, each
-- organization is looked at by one of them. One that fails, or takes until the statement is cancelled, holds up no other: it is tried again
-- after ten seconds, and more and more rarely up to an hour. Returns {"organizations", "fired", "failed": [{"organization_id", "error"}],
-- "more": whether others wait}.
--
-- All is read before anything is written: a transaction that has written holds back what is rolled up.
create or replace function billing.fire_alerts(p_most integer default 100)
returns jsonb
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  -- A variable, and not the clock itself in a query, by which no index would be searched: whoever waits for later stays unread.
  v_began timestamptz := clock_timestamp();
  v_until timestamptz := v_began + interval '2 seconds';
  v_now timestamptz;
  v_organization_id uuid;
  v_organizations integer := 0;
  v_queued billing.alert_queue[];
  v_postponed_until timestamptz;
  v_attempts integer;
  v_done billing.alert_queue[] := '{}';
  v_postponed billing.alert_queue[] := '{}';
  v_crossed notifications.notification_log[] := '{}';
  v_failed jsonb := '[]';
  v_told notifications.notification_log;
  v_fired integer := 0;
begin
  for v_organization_id in
    select q.organization_id
    from (select * from billing.alert_queue n where n.due_at <= v_began order by n.due_at limit greatest(p_most, 1)) as q
    group by 1
    order by min(q.due_at)
  loop
    continue when not pg_try_advisory_xact_lock(hashtextextended('goldleaves.alerts.' || v_organization_id, 0));
    -- After the lock, so that it is what whoever had it left; before usage is read, so that what is queued meanwhile stays.
    v_queued := array(select q from billing.alert_queue q where q.organization_id = v_organization_id);
    continue when v_queued = '{}';
    v_done := v_done || v_queued;
    select max(q.due_at) filter (where q.attempts > 0), max(q.attempts) into v_postponed_until, v_attempts from unnest(v_queued) q;

    begin
      if v_postponed_until > clock_timestamp() then
        v_postponed := v_postponed || billing.postponed_alerts(v_queued, v_postponed_until, v_attempts);
      else
        v_now := clock_timestamp();
        v_crossed := v_crossed || array(
          select c
          from (
            select distinct a.*
            from unnest(v_queued) q
            cross join lateral billing.period_of_alerts(v_organization_id, q.period_start, v_now) a
            where a.period_start is not null
          ) as p
          cross join lateral billing.crossed_thresholds(v_organization_id, p.period_start, p.period_end, p.at, p.has_ended) c
        );
        v_organizations := v_organizations + 1;
      end if;
    exception when query_canceled or others then
      v_failed := v_failed || jsonb_build_object('organization_id', v_organization_id, 'error', sqlerrm);
      v_postponed := v_postponed || billing.postponed_alerts(
        v_queued, clock_timestamp() + least(interval '10 seconds' * 2 ^ least(v_attempts, 10), interval '1 hour'), v_attempts + 1
      );
      exit when sqlstate = '57014';
    end;
    exit when clock_timestamp() > v_until;
  end loop;

  for v_told in
    insert into notifications.notification_log
    select c.*
    from unnest(v_crossed) c
    where exists (select from tenancy.organizations o where o.id = c.organization_id)
    on conflict (organization_id, period_start, kind, threshold_kind, threshold, meter_code, feature, limit_value) do nothing
    returning *
  loop
    v_fired := v_fired + 1;
    if v_told.kind = 'quota_reached' then
      perform billing.tell_quota_reached(v_told);
    end if;
  end loop;
  delete from billing.alert_queue q
  using unnest(v_done) d
  where q.organization_id = d.organization_id
    and q.id = d.id;
  insert into billing.alert_queue select p.* from unnest(v_postponed) p;

  return jsonb_build_object(
    'organizations', v_organizations, 'fired', v_fired, 'failed', v_failed,
    'more', coalesce((select min(q.due_at) from billing.alert_queue q) <= clock_timestamp(), false)
  );
end;
$$;

-- One row for each period of an organization, in place of all that were queued.
create or replace function billing.postponed_alerts(p_queued billing.alert_queue[], p_due_at timestamptz, p_attempts integer)
returns billing.alert_queue[]
language sql
volatile
set search_path = ''
as $$
  select array_agg(row(q.organization_id, ops.new_id(), q.period_start, p_due_at, p_attempts)::billing.alert_queue)
  from (select distinct n.organization_id, n.period_start from unnest(p_queued) n) as q
$$;

alter function billing.fire_alerts(integer) owner to goldleaves_kernel;
grant execute on function billing.period_of_alerts(uuid, timestamptz, timestamptz),
  billing.crossed_thresholds(uuid, timestamptz, timestamptz, timestamptz, boolean),
  billing.tell_quota_reached(notifications.notification_log), billing.postponed_alerts(billing.alert_queue[], timestamptz, integer)
  to goldleaves_kernel;
grant execute on function billing.fire_alerts(integer) to sidecar;
