-- What the current organization has used in a period, and what that costs. Reads only, for everybody who may read usage.
create or replace function billing.usage_summary(p_period_start date)
returns table (meter text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric)
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  perform billing.require_organization();
  return query
    select r.meter_code, r.unit, r.events, r.quantity, r.unit_amount_cents, r.amount_cents
    from billing.period_from_date(tenancy.current_org(), p_period_start) p,
      billing.rate_period(tenancy.current_org(), p.period_start, p.period_end) r;
end;
$$;

create or replace function billing.require_organization()
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if tenancy.current_org() is null then
    raise exception using
      errcode = 'PT400',
      message = 'ORGANIZATION_REQUIRED: no organization was chosen',
      hint = 'Send X-Organization-ID (id or slug).';
  end if;
end;
$$;

grant execute on function billing.require_organization() to goldleaves_kernel, member, service, platform_admin;
alter function billing.usage_summary(date) owner to goldleaves_kernel;
grant execute on function billing.usage_summary(date) to member, platform_admin;
