-- Usage alerts and budgets: what an organization wants to be told of. Nothing stops at them. Owners, admins and billing users write them, and the
-- provider's staff for them; sql/billing/fire_alerts.sql tells when a threshold is crossed.

create or replace function billing.require_alert_writer()
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  if current_setting('role', true) = 'platform_admin' then
    perform tenancy.require_organization();
  elsif tenancy.require_member() not in ('owner', 'admin', 'billing') then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only owners, admins and billing users change alerts and budgets',
      hint = 'Ask one of them. GET /memberships says who they are.';
  end if;
end;
$$;

-- What the organization may know of: features of public plans, and those that it has.
create or replace function billing.require_alert_feature(p_organization_id uuid, p_feature text)
returns void
language plpgsql
stable
set search_path = ''
as $$
declare
  v_known text[] := array(
    select f.feature
    from billing.plan_features f
    join billing.plans l on l.code = f.plan_code
    where l.is_public
      and f.kind <> 'boolean'
    union
    select e.feature
    from billing.entitlements_of(p_organization_id, clock_timestamp()) e
    where e.kind <> 'boolean'
    order by 1
  );
begin
  if p_feature <> all (v_known) then
    raise exception using
      errcode = 'PT404',
      message = format('FEATURE_NOT_FOUND: there is no feature %s with a limit', left(p_feature, 80)),
      hint = coalesce(format('There are %s.', nullif(array_to_string(v_known, ', '), '')), 'There are none.');
  end if;
end;
$$;

-- What the audit log keeps of an alert. Those that every organization is given are not told there.
create or replace function billing.told_of_alert(p_alert billing.usage_alerts)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'threshold_kind', p_alert.threshold_kind, 'threshold', p_alert.threshold, 'meter_code', p_alert.meter_code, 'feature', p_alert.feature
  ))
$$;

-- One that is there is returned as it is: a retry makes no second one.
create or replace function billing.create_usage_alert(p_threshold_kind text, p_threshold numeric, p_meter_code text, p_feature text)
returns billing.usage_alerts
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_organization_id uuid := tenancy.current_org();
  v_threshold numeric := trim_scale(p_threshold);
  v_alert billing.usage_alerts;
  v_problem text := case
    when p_threshold_kind is null or p_threshold_kind not in ('absolute', 'percent_of_limit', 'percent_of_budget')
      then 'threshold_kind is absolute, percent_of_limit or percent_of_budget'
    when (p_threshold > 0 and billing.is_amount(p_threshold)) is not true
      then 'threshold is a number above 0, below 1e15, with at most 12 decimals'
    when p_threshold_kind <> 'absolute' and p_threshold > 1000 then 'threshold is a percentage, 1000 at most: 80 is 80 %'
    when p_meter_code is not null and p_threshold_kind <> 'absolute' then 'meter goes with threshold_kind absolute alone'
    when p_feature is not null and p_threshold_kind <> 'percent_of_limit' then 'feature goes with threshold_kind percent_of_limit alone'
  end;
begin
  perform billing.require_alert_writer();
  if v_problem is not null then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_ALERT: ' || v_problem,
      hint = 'Such as {"threshold_kind": "percent_of_limit", "threshold": 90}. GET /usage_alerts lists what there is.';
  elsif p_meter_code is not null and not exists (select from metering.meters m where m.code = p_meter_code and m.deleted_at is null) then
    perform metering.raise_no_meter(p_meter_code);
  elsif p_feature is not null then
    perform billing.require_alert_feature(v_organization_id, p_feature);
  end if;

  -- So that of many at once none goes beyond the bound.
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.usage_alerts.' || v_organization_id, 0));
  select a.* into v_alert
  from billing.usage_alerts a
  where a.organization_id = v_organization_id
    and (a.threshold_kind, a.threshold) = (p_threshold_kind, v_threshold)
    and a.meter_code is not distinct from p_meter_code
    and a.feature is not distinct from p_feature;
  if found then
    return v_alert;
  elsif (select count(*) from billing.usage_alerts a where a.organization_id = v_organization_id) >= 100 then
    raise exception using
      errcode = 'PT409',
      message = 'TOO_MANY_ALERTS: an organization has at most 100 usage alerts',
      hint = 'Remove one with delete_usage_alert. An alert without a feature is for each that has a limit.';
  end if;
  insert into billing.usage_alerts (organization_id, threshold_kind, threshold, meter_code, feature)
  values (v_organization_id, p_threshold_kind, v_threshold, p_meter_code, p_feature)
  returning * into v_alert;
  perform audit.append(v_organization_id, 'usage_alert.created', 'usage_alert', v_alert.id::text, null, billing.told_of_alert(v_alert));
  perform billing.queue_alerts(v_organization_id);
  return v_alert;
end;
$$;

create or replace function billing.delete_usage_alert(p_id uuid)
returns billing.usage_alerts
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_alert billing.usage_alerts;
begin
  perform billing.require_alert_writer();
  delete from billing.usage_alerts a
  where a.organization_id = tenancy.current_org()
    and a.id = p_id
  returning * into v_alert;
  if not found then
    raise exception using
      errcode = 'PT404',
      message = format('ALERT_NOT_FOUND: the organization has no usage alert %s', coalesce(p_id::text, 'null')),
      hint = 'GET /usage_alerts lists them.';
  end if;
  perform audit.append(v_alert.organization_id, 'usage_alert.removed', 'usage_alert', p_id::text, billing.told_of_alert(v_alert), null);
  return v_alert;
end;
$$;

-- Null takes it away.
create or replace function billing.set_budget(p_amount_cents numeric)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform billing.require_alert_writer();
  if (p_amount_cents > 0 and p_amount_cents < 1e15 and scale(trim_scale(p_amount_cents)) = 0) is false then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_BUDGET: amount_cents is a whole number of minor units, above 0 and below 1e15',
      hint = '10000 is 100.00 usd, and 10000 jpy. null takes the budget away.';
  end if;
  if p_amount_cents is null then
    delete from billing.budgets b where b.organization_id = tenancy.current_org();
    return;
  end if;
  insert into billing.budgets as b (organization_id, amount_cents)
  values (tenancy.current_org(), trim_scale(p_amount_cents))
  on conflict (organization_id) do update
  set amount_cents = excluded.amount_cents, updated_at = now()
  where b.amount_cents <> excluded.amount_cents;
  if found then
    perform billing.queue_alerts(tenancy.current_org());
  end if;
end;
$$;

-- Whoever is new is told at 50, 80 and 100 percent of each limit, and of a budget once there is one.
create or replace function billing.seed_usage_alerts()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  insert into billing.usage_alerts (organization_id, threshold_kind, threshold)
  select new.id, k.threshold_kind, t.threshold
  from (values ('percent_of_limit'), ('percent_of_budget')) as k (threshold_kind)
  cross join (values (50), (80), (100)) as t (threshold);
  return null;
end;
$$;

alter function billing.create_usage_alert(text, numeric, text, text) owner to goldleaves_kernel;
alter function billing.delete_usage_alert(uuid) owner to goldleaves_kernel;
alter function billing.set_budget(numeric) owner to goldleaves_kernel;
alter function billing.seed_usage_alerts() owner to goldleaves_kernel;
grant execute on function billing.require_alert_writer(), billing.require_alert_feature(uuid, text), billing.told_of_alert(billing.usage_alerts)
  to goldleaves_kernel;
grant execute on function billing.create_usage_alert(text, numeric, text, text), billing.delete_usage_alert(uuid), billing.set_budget(numeric)
  to member, platform_admin;

create or replace trigger seed_usage_alerts after insert on tenancy.organizations
  for each row when (new.kind <> 'platform') execute function billing.seed_usage_alerts();
