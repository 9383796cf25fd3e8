-- Overrides: what one organization has other than its plan says, made by the provider's staff.

-- Kind, enforcement and meter that are left out are what the plan says of the feature.
create or replace function billing.set_entitlement(
  p_feature text, p_kind text, p_limit_value numeric, p_is_granted boolean, p_enforcement text, p_meter_code text, p_expires_at timestamptz,
  p_reason text
)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_feature billing.plan_features;
  v_kind text;
  v_enforcement text;
  v_meter_code text;
  v_problem text;
begin
  perform tenancy.require_organization();
  select f.* into v_feature
  from billing.standing(tenancy.current_org(), clock_timestamp()) s
  join billing.plan_features f on f.plan_code = s.plan_code
  where f.feature = p_feature
    and f.kind = coalesce(p_kind, f.kind);
  v_kind := coalesce(p_kind, v_feature.kind, case when p_limit_value is null then 'boolean' end);
  v_enforcement := coalesce(p_enforcement, v_feature.enforcement, 'soft');
  v_meter_code := coalesce(p_meter_code, v_feature.meter_code);
  v_problem := coalesce(
    case when p_is_granted is null then 'is_granted is true or false' end,
    billing.fault_of_feature(p_feature, v_kind, p_limit_value, v_enforcement, v_meter_code),
    case when length(btrim(p_reason)) not between 1 and 1000 then 'a reason has 1 to 1,000 characters' end
  );
  if v_problem is not null then
    raise exception using errcode = 'PT400', message = format('INVALID_ENTITLEMENT: %s: %s', coalesce(left(p_feature, 80), 'null'), v_problem);
  elsif p_expires_at <= clock_timestamp() or not isfinite(p_expires_at) then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_EXPIRY: expires_at has to be in the future',
      hint = 'Leave it out for one that does not expire.';
  end if;
  insert into billing.entitlement_overrides as v (
    organization_id, feature, is_granted, kind, limit_value, enforcement, meter_code, expires_at, reason, created_at, created_by
  )
  values (
    tenancy.current_org(), p_feature, p_is_granted, v_kind, trim_scale(p_limit_value), v_enforcement, v_meter_code, p_expires_at, btrim(p_reason),
    clock_timestamp(), billing.author()
  )
  on conflict (organization_id, feature) do update
  set
    is_granted = excluded.is_granted, kind = excluded.kind, limit_value = excluded.limit_value, enforcement = excluded.enforcement,
    meter_code = excluded.meter_code, expires_at = excluded.expires_at, reason = excluded.reason, created_at = excluded.created_at,
    created_by = excluded.created_by;
end;
$$;

create or replace function billing.remove_entitlement(p_feature text)
returns billing.entitlement_overrides
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_removed billing.entitlement_overrides;
begin
  perform tenancy.require_organization();
  delete from billing.entitlement_overrides v
  where v.organization_id = tenancy.current_org()
    and v.feature = p_feature
  returning * into v_removed;
  if not found then
    raise exception using
      errcode = 'PT404',
      message = format('ENTITLEMENT_NOT_FOUND: nothing is set for the feature %s of this organization alone', coalesce(left(p_feature, 80), 'null')),
      hint = 'GET /entitlement_overrides lists what is. What its plan says is changed with set_plan_feature.';
  end if;
  return v_removed;
end;
$$;

alter function billing.set_entitlement(text, text, numeric, boolean, text, text, timestamptz, text) owner to goldleaves_kernel;
alter function billing.remove_entitlement(text) owner to goldleaves_kernel;
grant execute on function billing.set_entitlement(text, text, numeric, boolean, text, text, timestamptz, text), billing.remove_entitlement(text)
  to platform_admin;
