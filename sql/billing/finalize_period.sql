-- Closing a period: under the lock that no writer of usage can share, rate it, write its invoices, and shut it for ever. Only
-- the provider's staff may, since a tenant could lock out its own late usage; EXECUTE says so. Safe to call twice.
-- Each payer gets an invoice: who pays when the period begins and who pays when it ends, also for nothing, and whoever else has to pay
-- something in it (an adjustment of a time before). Returns the one of who pays when it ends.
create or replace function billing.finalize_period(p_organization_id uuid, p_period_start date)
returns billing.invoices
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_period record;
  v_invoice billing.invoices;
  v_organization tenancy.organizations;
  v_first_payer uuid;
  v_last_payer uuid;
  v_year text;
begin
  if p_period_start is null then
    raise exception using
      errcode = 'PT400',
      message = 'PERIOD_REQUIRED: name the period by its first day',
      hint = 'Send {"period_start": "2026-01-01"}; GET /billing_periods lists them.';
  end if;
  select * into v_period from billing.period_from_date(p_organization_id, p_period_start);
  if v_period.period_end > clock_timestamp() then
    raise exception using
      errcode = 'PT409',
      message = format('PERIOD_NOT_ENDED: the period ends at %s', v_period.period_end),
      hint = 'A period can be finalized once it has ended.';
  end if;

  perform billing.take_period_lock(p_organization_id);
  perform billing.ensure_periods(p_organization_id, v_period.period_start, v_period.period_start);

  -- Statements from here on see everything that the lock waited for.
  select * into strict v_period
  from billing.billing_periods
  where organization_id = p_organization_id
    and period_start = v_period.period_start
    and period_end = v_period.period_end;

  select * into strict v_organization from tenancy.organizations where id = p_organization_id;
  v_first_payer := billing.payer(v_organization.billing_user_id, v_organization.billing_start_at, v_period.period_start);
  v_last_payer := billing.payer(
    v_organization.billing_user_id, v_organization.billing_start_at, v_period.period_end - interval '1 microsecond'
  );

  if v_period.status = 'finalized' then
    select * into strict v_invoice
    from billing.invoices
    where organization_id = p_organization_id
      and period_start = v_period.period_start
      and payer_user_id is not distinct from v_last_payer;
    return v_invoice;
  end if;

  v_year := to_char(now() at time zone v_period.timezone, 'YYYY');

  -- Rated once, in one statement: a price that is committed meanwhile must not come between a total and its lines.
  with rated as materialized (
    select *
    from billing.rate_period(p_organization_id, v_period.period_start, v_period.period_end) r
    where r.unit_amount_cents is not null
  ),
  payers as (
    select v_first_payer as user_id
    union
    select v_last_payer
    union
    select r.payer_user_id from rated r
  ),
  issued as (
    select count(*) as invoices
    from billing.invoices i
    where i.organization_id = p_organization_id
      and i.number like v_year || '-%'
  ),
  invoice as (
    insert into billing.invoices (organization_id, number, period_start, period_end, payer_user_id, currency, total_cents)
    select
      p_organization_id,
      format('%s-%s', v_year, lpad((i.invoices + row_number() over (order by p.user_id nulls last))::text, 4, '0')),
      v_period.period_start,
      v_period.period_end,
      p.user_id,
      v_organization.currency,
      (select coalesce(sum(r.amount_cents), 0) from rated r where r.payer_user_id is not distinct from p.user_id)
    from payers p, issued i
    returning *
  ),
  lines as (
    insert into billing.invoice_lines (
      organization_id, invoice_id, line_number, meter_code, description, unit, events, quantity, unit_amount_cents, amount_cents
    )
    select
      p_organization_id, i.id, row_number() over (partition by i.id order by r.meter_code),
      r.meter_code, r.description, r.unit, r.events, r.quantity, r.unit_amount_cents, r.amount_cents
    from rated r
    join invoice i on i.payer_user_id is not distinct from r.payer_user_id
  )
  select * into strict v_invoice from invoice i where i.payer_user_id is not distinct from v_last_payer;

  update billing.billing_periods
  set status = 'finalized', finalized_at = clock_timestamp()
  where organization_id = p_organization_id and period_start = v_period.period_start;

  return v_invoice;
end;
$$;

-- What an open period would cost now. Changes nothing, so twice gives the same; a finalized one is refused.
create or replace function billing.recalculate_period(p_organization_id uuid, p_period_start date)
returns table (meter text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric)
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_period record;
begin
  select * into v_period from billing.period_from_date(p_organization_id, p_period_start);
  if v_period.status = 'finalized' then
    perform billing.raise_locked(format('the period that starts on %s is finalized and cannot be recalculated', p_period_start));
  end if;
  return query
    select r.meter_code, r.unit, r.events, r.quantity, r.unit_amount_cents, r.amount_cents
    from billing.rate_meters(p_organization_id, v_period.period_start, v_period.period_end) r;
end;
$$;

alter function billing.finalize_period(uuid, date) owner to goldleaves_kernel;
alter function billing.recalculate_period(uuid, date) owner to goldleaves_kernel;
grant execute on function billing.finalize_period(uuid, date), billing.recalculate_period(uuid, date) to platform_admin;
