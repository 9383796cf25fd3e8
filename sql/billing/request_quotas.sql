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
grant execute on function billing.request_quotas(uuid, timestamptz), billing.give_back(uuid, text[], timestamptz) to goldleaves_kernel;
grant execute on function billing.gateway_limits(uuid), billing.take_request(uuid), billing.give_back_request(uuid, timestamptz) to sidecar;
