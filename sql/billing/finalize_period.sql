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
  v_stored billing.billing_periods;
  v_invoice billing.invoices;
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
  select * into strict v_stored
  from billing.billing_periods
  where organization_id = p_organization_id
    and period_start = v_period.period_start
    and period_end = v_period.period_end;
  if v_stored.status <> 'finalized' then
    perform billing.issue_invoices(v_stored, true);
  end if;

  select i.* into v_invoice
  from billing.invoices i
  join tenancy.organizations o on o.id = i.organization_id
  where i.organization_id = p_organization_id
    and i.period_start = v_stored.period_start
    and i.payer_user_id is not distinct from
      billing.payer(o.billing_user_id, o.billing_start_at, v_stored.period_end - interval '1 microsecond');
  if not found then
    raise exception using
      errcode = 'PT409',
      message = format('BILLING_PERIOD_LOCKED: the period that starts on %s is closed already, and has no invoice', p_period_start),
      hint = 'Nothing was used in it, or it lies before the first period that was closed.';
  end if;
  return v_invoice;
end;
$$;

-- The closing itself, for who holds the period lock; periods are closed in their order. p_also_for_nothing: else a payer who has used nothing
-- in it and owes nothing gets no invoice. Returns how many were made. Writers of usage wait
-- meanwhile, so it waits for nobody longer than they do for the lock.
create or replace function billing.issue_invoices(p_period billing.billing_periods, p_also_for_nothing boolean)
returns integer
language plpgsql
volatile
set search_path = ''
set lock_timeout = '2s'
as $$
declare
  v_earlier billing.billing_periods;
  v_draft record;
  v_issued billing.invoices;
  v_now timestamptz;
  v_year text;
  v_number integer;
  v_made integer := 0;
  v_payment_days integer;
  v_facts jsonb;
begin
  select p.* into v_earlier
  from billing.billing_periods p
  where p.organization_id = p_period.organization_id
    and p.period_start < p_period.period_start
    and p.status <> 'finalized'
  order by p.period_start
  limit 1;
  if found then
    raise exception using
      errcode = 'PT409',
      message = format(
        'PERIOD_OUT_OF_ORDER: the period that starts on %s comes first', (v_earlier.period_start at time zone v_earlier.timezone)::date
      ),
      hint = 'Late usage and balances go from one period to the next: finalize them in their order.';
  end if;

  begin
    -- The balance that an invoice takes from is nobody else's until it is issued.
    perform billing.take_ledger_lock(p_period.organization_id);
    -- Who makes a price is alone with that: all prices that were made by now are seen, and those that come later are later than rated_at.
    perform billing.share_prices();
  exception when lock_not_available then
    raise exception using
      errcode = 'PT503',
      message = 'PERIOD_BUSY: a payment, credit note or price is being written, and was not committed in time',
      hint = 'Look for long transactions in pg_stat_activity, then try again.';
  end;
  v_now := clock_timestamp();
  v_facts := billing.facts_of(p_period.organization_id, p_period.period_start, p_period.period_end);
  v_year := to_char(v_now at time zone p_period.timezone, 'YYYY');
  select coalesce(max(split_part(i.number, '-', 2)::integer), 0) into v_number
  from billing.invoices i
  where i.organization_id = p_period.organization_id
    and i.number like v_year || '-%';
  select t.payment_days into v_payment_days from billing.billing_terms t where t.organization_id = p_period.organization_id;

  -- Drafted in one statement: a price that is committed meanwhile must not come between a total and its lines.
  for v_draft in
    select d.invoice, d.lines
    from billing.draft_invoices(p_period.organization_id, p_period.period_start, p_period.period_end, p_period.timezone) d
  loop
    v_issued := v_draft.invoice;
    if not p_also_for_nothing
      and not v_facts @> jsonb_build_object('events', jsonb_build_array(jsonb_build_object('billing_entity_id', v_issued.billing_entity_id)))
      and not exists (select from unnest(v_draft.lines) l where l.amount_cents <> 0)
    then
      continue;
    end if;
    v_made := v_made + 1;
    v_issued.id := ops.new_id();
    v_issued.issued_at := v_now;
    v_issued.rated_at := v_now;
    -- A statement uses up no number, and is never due.
    if v_issued.kind = 'invoice' then
      v_number := v_number + 1;
      v_issued.number := format('%s-%s', v_year, lpad(v_number::text, greatest(4, length(v_number::text)), '0'));
      v_issued.due_at := v_now + make_interval(days => coalesce(v_payment_days, 14));
    end if;
    v_issued.facts := v_facts;
    v_issued.digest := billing.digest_of(v_issued, v_draft.lines);
    perform billing.store_invoice(v_issued, v_draft.lines);
    if v_issued.kind = 'statement' then
      perform stripe.queue_invoice_items(v_issued, v_draft.lines, p_period.invoice_mode);
    end if;
  end loop;

  update billing.billing_periods
  set status = 'finalized', finalized_at = v_now
  where organization_id = p_period.organization_id and period_start = p_period.period_start;
  -- The scheduler knows an organization by the period that it closes next.
  perform billing.ensure_periods(p_period.organization_id, p_period.period_end, p_period.period_end);
  return v_made;
end;
$$;

-- An invoice with its lines, what it does to the payer's balance, and the message that tells of it. A statement does nothing to the balance: what
-- is below zero is Stripe's to credit.
create or replace function billing.store_invoice(p_invoice billing.invoices, p_lines billing.invoice_lines[])
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  insert into billing.invoices (
    organization_id, id, number, period_start, period_end, payer_user_id, currency, total_cents, issued_at, timezone, plan_code,
    billing_profile, issuer, subtotal_cents, tax_name, tax_percent, tax_inclusive, tax_cents, balance_applied_cents, amount_due_cents, due_at,
    rated_at, facts, digest, kind, issued_generation, issued_xid
  )
  values (
    p_invoice.organization_id, p_invoice.id, p_invoice.number, p_invoice.period_start, p_invoice.period_end, p_invoice.payer_user_id,
    p_invoice.currency, p_invoice.total_cents, p_invoice.issued_at, p_invoice.timezone, p_invoice.plan_code,
    p_invoice.billing_profile, p_invoice.issuer, p_invoice.subtotal_cents, p_invoice.tax_name, p_invoice.tax_percent, p_invoice.tax_inclusive,
    p_invoice.tax_cents, p_invoice.balance_applied_cents, p_invoice.amount_due_cents, p_invoice.due_at,
    p_invoice.rated_at, p_invoice.facts, p_invoice.digest, p_invoice.kind, metering.recording_generation(), billing.next_xid()
  );

  insert into billing.invoice_lines (
    organization_id, invoice_id, line_number, meter_code, description, unit, events, quantity, unit_amount_cents, amount_cents, kind, groups,
    price, tiers, belongs_to, exact_cents, value
  )
  select
    p_invoice.organization_id, p_invoice.id, l.line_number, l.meter_code, l.description, l.unit, l.events, l.quantity, l.unit_amount_cents,
    l.amount_cents, l.kind, l.groups, l.price, l.tiers, l.belongs_to, l.exact_cents, l.value
  from unnest(p_lines) l;

  insert into billing.balance_entries (organization_id, payer_user_id, currency, kind, amount_cents, invoice_id)
  select p_invoice.organization_id, p_invoice.payer_user_id, p_invoice.currency, b.kind, b.amount_cents, p_invoice.id
  from (
    values ('applied', -p_invoice.balance_applied_cents), ('negative_invoice', -least(p_invoice.total_cents, 0))
  ) as b (kind, amount_cents)
  where b.amount_cents <> 0
    and p_invoice.kind = 'invoice';

  perform billing.tell_invoice(p_invoice.organization_id, p_invoice.id);
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
grant execute on function billing.store_invoice(billing.invoices, billing.invoice_lines[]),
  billing.issue_invoices(billing.billing_periods, boolean) to goldleaves_kernel;
grant execute on function billing.finalize_period(uuid, date), billing.recalculate_period(uuid, date) to platform_admin;
