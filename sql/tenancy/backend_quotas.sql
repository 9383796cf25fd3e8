-- Quotas for the provider's backend, which has no right to look into schema billing.
create or replace function tenancy.reserve_for_backend(
  p_feature text, p_amount numeric, p_reference text, out limit_value numeric, out used numeric, out remaining numeric, out resets_at timestamptz
)
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform tenancy.require_organization();
  select g.limit_value, g.used, billing.remaining_of(g.limit_value, g.used), g.resets_at into limit_value, used, remaining, resets_at
  from billing.grant_quota(tenancy.current_org(), p_feature, p_amount, p_reference) g;
end;
$$;

create or replace function tenancy.release_for_backend(
  p_feature text, p_amount numeric, p_reference text, out limit_value numeric, out used numeric, out remaining numeric, out resets_at timestamptz
)
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform tenancy.require_organization();
  perform billing.release_quota(tenancy.current_org(), p_feature, p_amount, p_reference);
  select u.limit_value, u.used, billing.remaining_of(u.limit_value, u.used), case when isfinite(u.period_end) then u.period_end end
  into limit_value, used, remaining, resets_at
  from billing.quota_usage(tenancy.current_org()) u
  where u.feature = p_feature;
end;
$$;

alter function tenancy.reserve_for_backend(text, numeric, text) owner to goldleaves_kernel;
alter function tenancy.release_for_backend(text, numeric, text) owner to goldleaves_kernel;
grant execute on function tenancy.reserve_for_backend(text, numeric, text), tenancy.release_for_backend(text, numeric, text)
  to service, platform_admin;
