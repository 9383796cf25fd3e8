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
  select * into v_period from billing.period_from_date(tenancy.current_org(), p_period_start);

  -- Of a finalized period the invoice is the answer, whatever became of prices since; beside it, what is not billed.
  return query
    select coalesce(l.meter_code, r.meter_code), coalesce(l.unit, r.unit), coalesce(l.events, r.events),
      coalesce(l.quantity, r.quantity), l.unit_amount_cents, coalesce(l.amount_cents, 0)
    from billing.rate_period(tenancy.current_org(), v_period.period_start, v_period.period_end) r
    full join (
      select il.*
      from billing.invoices i
      join billing.invoice_lines il on il.organization_id = i.organization_id and il.invoice_id = i.id
      where i.organization_id = tenancy.current_org()
        and i.period_start = v_period.period_start
    ) as l on l.meter_code = r.meter_code
    where v_period.status = 'finalized'
    union all
    select r.meter_code, r.unit, r.events, r.quantity, r.unit_amount_cents, r.amount_cents
    from billing.rate_period(tenancy.current_org(), v_period.period_start, v_period.period_end) r
    where v_period.status is distinct from 'finalized';
end;
$$;

alter function billing.usage_summary(date) owner to goldleaves_kernel;
grant execute on function billing.usage_summary(date) to member, platform_admin;
