-- Quotas: how much of a feature is used, and acts that are granted or refused by that. What a hard quota refuses is the act, never the usage
-- that is metered of it: that has happened.
--
-- Used of a limit per period is what was metered in the billing period, or what was granted, whichever is more: usage is metered later than it
-- is granted, and each grant goes on from the greater one, so nothing counts twice and nothing twice over is let through. A limit at any time
-- is what there is now: rows of members, workspaces and API keys, what a meter of levels stores, else what was granted and not released.
--
-- Whoever grants locks the counter first and reads in later statements: those who waited see what was granted before them. The period lock is
-- shared before that, as everybody does who will meter in the same transaction: else the two would be taken in both orders.

-- The period that a quota counts in; of a limit at any time all of time.
create or replace function billing.quota_period(
  p_organization_id uuid, p_kind text, p_at timestamptz, out period_start timestamptz, out period_end timestamptz
)
language plpgsql
stable
set search_path = ''
as $$
begin
  if p_kind = 'limit_per_period' then
    select f.period_start, f.period_end into period_start, period_end from billing.find_period(p_organization_id, p_at) f;
  else
    period_start := '-infinity';
    period_end := 'infinity';
  end if;
end;
$$;

-- What counts by itself, without being granted; null where only grants count. A pending invitation holds a seat, and a key that was rotated and
-- its successor are one.
create or replace function billing.counted_of_quota(
  p_organization_id uuid, p_feature text, p_kind text, p_meter_code text, p_period_start timestamptz, p_period_end timestamptz
)
returns numeric
language plpgsql
stable
set search_path = ''
as $$
begin
  return case
    when p_kind = 'boolean' then null
    when p_meter_code is not null and p_kind = 'limit_per_period' then (
      select coalesce(sum(m.quantity), 0)
      from metering.meters k
      cross join lateral metering.measure(
        p_organization_id, array[p_period_start, p_period_end], '{}', jsonb_build_object('meter', p_meter_code), false,
        k.aggregation <> 'weighted_sum'
      ) m
      where k.code = p_meter_code
        and m.metered
    )
    when p_meter_code is not null then (
      select greatest(metering.recorded_level(p_organization_id, p_meter_code, clock_timestamp()), 0) / k.unit_size
      from metering.meters k
      where k.code = p_meter_code
    )
    when p_kind <> 'limit' then null
    when p_feature = 'members' then (
      select count(*) from tenancy.memberships m where m.organization_id = p_organization_id
    ) + (
      select count(*)
      from tenancy.invitations i
      where i.organization_id = p_organization_id
        and i.accepted_at is null
        and i.revoked_at is null
        and i.expires_at > now()
    )
    when p_feature = 'workspaces' then (select count(*) from tenancy.workspaces w where w.organization_id = p_organization_id)
    when p_feature = 'api_keys' then (
      select count(*)
      from tenancy.api_keys k
      where k.organization_id = p_organization_id
        and k.kind = 'organization'
        and k.revoked_at is null
        and (k.expires_at is null or k.expires_at > now())
        and not exists (select from tenancy.api_keys s where s.rotated_from = k.id)
    )
  end;
end;
$$;

-- What each entitlement of an organization comes to now. used is null of what is there or not.
create or replace function billing.quota_usage(p_organization_id uuid)
returns table (
  feature text, kind text, limit_value numeric, enforcement text, meter_code text, is_granted boolean, source text, expires_at timestamptz,
  plan_code text, period_start timestamptz, period_end timestamptz, used numeric
)
language sql
stable
set search_path = ''
as $$
  select
    e.feature, e.kind, e.limit_value, e.enforcement, e.meter_code, e.is_granted, e.source, e.expires_at, e.plan_code, p.period_start, p.period_end,
    case
      when e.kind = 'boolean' then null
      -- Of what is counted at any time nothing is kept as granted.
      when e.kind = 'limit' then trim_scale(coalesce(n.counted, c.granted, 0))
      else trim_scale(greatest(n.counted, c.granted, 0))
    end
  from (select clock_timestamp() as at) as now
  cross join lateral billing.entitlements_of(p_organization_id, now.at) e
  cross join lateral billing.quota_period(p_organization_id, e.kind, now.at) p
  cross join lateral billing.counted_of_quota(p_organization_id, e.feature, e.kind, e.meter_code, p.period_start, p.period_end) as n (counted)
  left join billing.quota_counters c on c.organization_id = p_organization_id and c.feature = e.feature and c.period_start = p.period_start
  where p_organization_id is not null
$$;

-- An update, although nothing changes: a lock alone is nothing that a transaction outside READ COMMITTED, whose snapshot is older, would
-- meet. It gets 40001, and tries again.
create or replace function billing.lock_quota(p_organization_id uuid, p_feature text, p_period_start timestamptz)
returns billing.quota_counters
language sql
volatile
set search_path = ''
as $$
  insert into billing.quota_counters as c (organization_id, feature, period_start)
  values (p_organization_id, p_feature, p_period_start)
  on conflict (organization_id, feature, period_start) do update set granted = c.granted
  returning c
$$;

create or replace function billing.raise_quota_exceeded(
  p_feature text, p_limit numeric, p_used numeric, p_asked numeric, p_resets_at timestamptz
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT402',
    message = format(
      'QUOTA_EXCEEDED: %s of %s %s are used, and %s more would be over the limit', trim_scale(p_used), trim_scale(p_limit), p_feature,
      trim_scale(p_asked)
    ),
    detail = jsonb_build_object(
      'feature', p_feature, 'limit', trim_scale(p_limit), 'used', trim_scale(p_used), 'asked', trim_scale(p_asked),
      'resets_at', case when isfinite(p_resets_at) then p_resets_at end
    )::text,
    hint = case
      when isfinite(p_resets_at) then format('It begins anew at %s. Until then, ask for a plan with more.', p_resets_at)
      else 'Free some of it, or ask for a plan with more.'
    end;
end;
$$;

-- Requests at the gateway: one unit of each quota that counts them is granted before a request goes on, for it is metered after its
-- answer. The quotas in question: hard ones whose meter counts requests, whichever they are.
create or replace function billing.request_quotas(p_organization_id uuid, p_at timestamptz)
returns table (feature text, limit_value numeric, meter_code text, unit numeric, period_start timestamptz, period_end timestamptz)
language sql
stable
set search_path = ''
as $$
  select
    e.feature, e.limit_value, e.meter_code, case m.aggregation when 'count' then 1 else trim_scale(1 / m.unit_size) end, p.period_start, p.period_end
  from billing.entitlements_of(p_organization_id, p_at) e
  join metering.meters m
    on m.code = e.meter_code
    and m.event_name = 'api.request'
    and m.filter = '{}'
    and m.deleted_at is null
    and (m.aggregation = 'count' or m.aggregation = 'sum' and m.value = 'quantity')
  cross join lateral billing.quota_period(p_organization_id, e.kind, p_at) p
  where e.kind = 'limit_per_period'
    and e.enforcement = 'hard'
    and e.limit_value is not null
$$;

-- For the gateway. plan: the one whose tier counts, null without access. counts_requests: whether requests use up a hard quota.
create or replace function billing.gateway_limits(p_organization_id uuid)
returns jsonb
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  return jsonb_build_object(
    'plan', (select s.plan_code from billing.standing(p_organization_id, v_now) s where s.has_access),
    'counts_requests', exists (select from billing.request_quotas(p_organization_id, v_now))
  );
end;
$$;

-- For the gateway, a transaction of its own: null, and one request is granted of each such quota; or which one refuses it, and nothing is granted.
-- What was metered beside (events that were sent, requests from before the quota) is looked at every few seconds, since that takes
-- longer than all the rest.
create or replace function billing.take_request(p_organization_id uuid)
returns jsonb
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_quota record;
  v_counter billing.quota_counters;
  v_used numeric;
  v_taken text[] := '{}';
begin
  -- A server that crashes forgets some grants, whose requests were metered: the next look finds them again.
  perform set_config('synchronous_commit', 'off', true);
  -- By name, so that no two wait for each other.
  for v_quota in select * from billing.request_quotas(p_organization_id, v_now) q order by q.feature loop
    update billing.quota_counters c
    set granted = c.granted + v_quota.unit
    where c.organization_id = p_organization_id
      and c.feature = v_quota.feature
      and c.period_start = v_quota.period_start
      and c.granted + v_quota.unit <= v_quota.limit_value
      and c.measured_at > v_now - interval '5 seconds';
    if not found then
      v_counter := billing.lock_quota(p_organization_id, v_quota.feature, v_quota.period_start);
      v_used := v_counter.granted;
      if v_counter.measured_at is null or v_counter.measured_at <= v_now - interval '5 seconds' then
        v_used := greatest(
          v_used,
          billing.counted_of_quota(
            p_organization_id, v_quota.feature, 'limit_per_period', v_quota.meter_code, v_quota.period_start, v_quota.period_end
          )
        );
        v_counter.measured_at := clock_timestamp();
      end if;
      update billing.quota_counters c
      set
        granted = v_used + case when v_used + v_quota.unit <= v_quota.limit_value then v_quota.unit else 0 end,
        measured_at = v_counter.measured_at
      where c.organization_id = p_organization_id
        and c.feature = v_quota.feature
        and c.period_start = v_quota.period_start;
      if v_used + v_quota.unit > v_quota.limit_value then
        perform billing.give_back(p_organization_id, v_taken, v_now);
        return jsonb_build_object(
          'feature', v_quota.feature, 'limit', trim_scale(v_quota.limit_value), 'used', trim_scale(v_used), 'resets_at', v_quota.period_end
        );
      end if;
    end if;
    v_taken := v_taken || v_quota.feature;
  end loop;
  return null;
end;
$$;

create or replace function billing.give_back(p_organization_id uuid, p_features text[], p_taken_at timestamptz)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_quota record;
begin
  for v_quota in select * from billing.request_quotas(p_organization_id, p_taken_at) q where q.feature = any (p_features) order by q.feature loop
    update billing.quota_counters c
    set granted = greatest(c.granted - v_quota.unit, 0)
    where c.organization_id = p_organization_id
      and c.feature = v_quota.feature
      and c.period_start = v_quota.period_start;
  end loop;
end;
$$;

-- For the gateway, when the answer to a request that was granted is none that is billed. p_taken_at: about when that was, so that a request at the
-- turn of a period is given back where it was taken; null: now.
create or replace function billing.give_back_request(p_organization_id uuid, p_taken_at timestamptz default null)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz := least(coalesce(p_taken_at, clock_timestamp()), clock_timestamp());
begin
  perform set_config('synchronous_commit', 'off', true);
  perform billing.give_back(
    p_organization_id, array(select q.feature from billing.request_quotas(p_organization_id, v_at) q), v_at
  );
end;
$$;

alter function billing.gateway_limits(uuid) owner to goldleaves_kernel;
alter function billing.take_request(uuid) owner to goldleaves_kernel;
alter function billing.give_back_request(uuid, timestamptz) owner to goldleaves_kernel;
grant execute on function
  billing.quota_period(uuid, text, timestamptz), billing.counted_of_quota(uuid, text, text, text, timestamptz, timestamptz),
  billing.quota_usage(uuid), billing.lock_quota(uuid, text, timestamptz),
  billing.raise_quota_exceeded(text, numeric, numeric, numeric, timestamptz), billing.request_quotas(uuid, timestamptz),
  billing.give_back(uuid, text[], timestamptz) to goldleaves_kernel;
grant execute on function billing.gateway_limits(uuid), billing.take_request(uuid), billing.give_back_request(uuid, timestamptz) to sidecar;
