-- What an organization's plan lets it do, for policies and functions, and quotas for SQL code. All are about the current organization.
--
-- In a policy a check costs a tenth of a millisecond or less, for each row that is looked at. Behind the comparison with the organization,
-- which is cheaper and therefore comes first, it is asked for no row of others:
--
--   with check (organization_id = tenancy.current_org_for('owner', 'admin') and tenancy.require_feature('audit_log'))
--
-- require_feature() raises the error that says what to do; has_feature() shows no rows.

create or replace function tenancy.has_feature(p_feature text)
returns boolean
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  perform tenancy.require_organization();
  return billing.has_feature(tenancy.current_org(), p_feature);
end;
$$;

-- True, or 403 FEATURE_REQUIRED with the plan, its status, and what to do.
create or replace function tenancy.require_feature(p_feature text)
returns boolean
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  perform tenancy.require_organization();
  if not billing.has_feature(tenancy.current_org(), p_feature) then
    perform billing.raise_feature_required(tenancy.current_org(), p_feature);
  end if;
  return true;
end;
$$;

-- In the transaction of the act, before it: granted together with it, or 402 QUOTA_EXCEEDED. Returns what remains then; null: there is no limit.
create or replace function tenancy.reserve_quota(p_feature text, p_amount numeric default 1)
returns numeric
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_granted record;
begin
  perform tenancy.require_organization();
  v_granted := billing.grant_quota(tenancy.current_org(), p_feature, p_amount, null);
  return billing.remaining_of(v_granted.limit_value, v_granted.used);
end;
$$;

alter function tenancy.has_feature(text) owner to goldleaves_kernel;
alter function tenancy.require_feature(text) owner to goldleaves_kernel;
alter function tenancy.reserve_quota(text, numeric) owner to goldleaves_kernel;
grant execute on function tenancy.has_feature(text), tenancy.require_feature(text) to member, platform_admin;
grant execute on function tenancy.reserve_quota(text, numeric) to member, platform_admin;

comment on function tenancy.has_feature(text) is
  'goldleaves lint helper_not_inlinable: what a plan offers has to be looked up, in tables that a member may not read';
comment on function tenancy.require_feature(text) is
  'goldleaves lint helper_not_inlinable: what a plan offers has to be looked up, in tables that a member may not read';
