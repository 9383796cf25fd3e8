-- What the current organization has used in a period, and what that costs. Reads only, for everybody who may read usage.
create or replace function billing.usage_summary(p_period_start date)
returns table (meter text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric)
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_period record;
begin
  perform tenancy.require_organization();
  perform tenancy.require_role_in('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read');
  select * into v_period from billing.period_from_date(tenancy.current_org(), p_period_start);

  if v_period.status is distinct from 'finalized' then
    return query
      select r.meter_code, r.unit, r.events, r.quantity, r.unit_amount_cents, r.amount_cents
      from billing.rate_meters(tenancy.current_org(), v_period.period_start, v_period.period_end) r;
    return;
  end if;

  -- Of a finalized period its invoices are the answer, whatever became of prices since; beside them, what was not billed.
  return query
    with lines as materialized (
      select
        l.meter_code, l.unit, sum(l.events)::bigint as events, sum(l.quantity) as quantity, l.unit_amount_cents,
        sum(l.amount_cents) as amount_cents
      from billing.invoices i
      join billing.invoice_lines l on l.organization_id = i.organization_id and l.invoice_id = i.id
      where i.organization_id = tenancy.current_org()
        and i.period_start = v_period.period_start
      group by l.meter_code, l.unit, l.unit_amount_cents
      order by l.meter_code
    )
    select l.meter_code, l.unit, l.events, l.quantity, l.unit_amount_cents, l.amount_cents
    from lines l
    union all
    select r.meter_code, r.unit, r.events, r.quantity, null, 0
    from billing.rate_meters(tenancy.current_org(), v_period.period_start, v_period.period_end) r
    where r.unit is null
      or not exists (select from lines l where l.meter_code = r.meter_code);
end;
$$;

alter function billing.usage_summary(date) owner to goldleaves_kernel;
grant execute on function billing.usage_summary(date) to member, platform_admin;
