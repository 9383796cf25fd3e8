-- Entitlements: what an organization has by its plan, or by an override that stands in for it until it expires. Read at the moment it is asked,
-- nothing is cached: a change of plan, the end of a grace or of an override count at once.

-- Plan and status of an organization, and whether features are granted in that status. Who never had a subscription has the plan that staff gave.
-- Inlined, like the next one.
create or replace function billing.standing(p_organization_id uuid, p_at timestamptz)
returns table (plan_code text, status text, has_access boolean, grace_ends_at timestamptz)
language sql
stable
as $$
  select
    coalesce(f.plan_code, o.plan),
    coalesce(f.status, 'active'),
    coalesce(f.status in ('trialing', 'active') or f.status = 'past_due' and p_at < f.grace_ends_at, true),
    f.grace_ends_at
  from tenancy.organizations o
  left join lateral billing.phase_at(o.id, p_at) f on true
  where o.id = p_organization_id
$$;

-- Features by plan and override. Without access none is granted, and limits hold all the same: else who does not pay would have none.
create or replace function billing.entitlements_of(p_organization_id uuid, p_at timestamptz)
returns table (
  feature text, kind text, limit_value numeric, enforcement text, meter_code text, is_granted boolean, source text, expires_at timestamptz,
  plan_code text
)
language sql
stable
as $$
  select
    e.feature, e.kind, e.limit_value, e.enforcement, e.meter_code,
    s.has_access and e.is_granted and (e.limit_value > 0 or e.limit_value is null), e.source, e.expires_at, s.plan_code
  from billing.standing(p_organization_id, p_at) s
  cross join lateral (
    select p.feature, p.kind, p.limit_value, p.enforcement, p.meter_code, true as is_granted, 'plan' as source, null::timestamptz as expires_at
    from billing.plan_features p
    where p.plan_code = s.plan_code
      and not exists (
        select
        from billing.entitlement_overrides v
        where v.organization_id = p_organization_id
          and v.feature = p.feature
          and (v.expires_at is null or v.expires_at > p_at)
      )
    union all
    select
      v.feature, v.kind, case when v.is_granted or v.kind = 'boolean' then v.limit_value else 0 end, v.enforcement, v.meter_code, v.is_granted,
      'override', v.expires_at
    from billing.entitlement_overrides v
    where v.organization_id = p_organization_id
      and (v.expires_at is null or v.expires_at > p_at)
  ) as e
$$;

-- plpgsql, since that keeps the plan of its query for the whole session.
create or replace function billing.has_feature(p_organization_id uuid, p_feature text)
returns boolean
language plpgsql
stable
set search_path = ''
as $$
begin
  return exists (
    select
    from billing.entitlements_of(p_organization_id, clock_timestamp()) e
    where e.feature = p_feature
      and e.is_granted
  );
end;
$$;

create or replace function billing.raise_feature_required(p_organization_id uuid, p_feature text)
returns void
language plpgsql
stable
set search_path = ''
as $$
declare
  v_standing record;
  v_plans text;
  v_is_in_plan boolean;
begin
  select * into v_standing from billing.standing(p_organization_id, clock_timestamp());
  select string_agg(l.name, ', ' order by l.position, l.code) into v_plans
  from billing.plan_features f
  join billing.plans l on l.code = f.plan_code
  where f.feature = p_feature
    and l.is_public
    and f.limit_value is distinct from 0;
  v_is_in_plan := exists (
    select from billing.plan_features f where f.plan_code = v_standing.plan_code and f.feature = p_feature and f.limit_value is distinct from 0
  );
  raise exception using
    errcode = 'PT403',
    message = format(
      'FEATURE_REQUIRED: this needs the feature %s, and the organization has plan %s, which is %s',
      coalesce(left(p_feature, 80), 'null'), coalesce(v_standing.plan_code, 'null'),
      coalesce(
        case
          when v_standing.status = 'past_due' and not v_standing.has_access then format('past_due, and its grace ended at %s', v_standing.grace_ends_at)
          else v_standing.status
        end,
        'unknown'
      )
    ),
    detail = jsonb_build_object('feature', left(p_feature, 80), 'plan', v_standing.plan_code, 'status', v_standing.status)::text,
    hint = case
      when not v_standing.has_access then 'Only who is trialing, active, or past due within the grace has features. Pay, or start a subscription.'
      when v_is_in_plan then 'The provider''s staff has taken it from this organization: ask there.'
      when v_plans is not null then format('It comes with %s: ask for a change of plan.', v_plans)
      else 'No public plan has it: ask the provider''s staff.'
    end;
end;
$$;

grant execute on function billing.standing(uuid, timestamptz), billing.entitlements_of(uuid, timestamptz), billing.has_feature(uuid, text),
  billing.raise_feature_required(uuid, text) to goldleaves_kernel;
