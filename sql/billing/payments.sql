-- Payments, what is paid back of them, and what is written off, by the provider's staff: EXECUTE says so. Each has a reference, by which a
-- retry is the same as once.

create or replace function billing.require_payment_details(p_amount_cents numeric, p_reference text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_problem text;
begin
  v_problem := case
    when p_amount_cents is null or not (p_amount_cents >= 1 and p_amount_cents < 1e15) or scale(p_amount_cents) > 0
      then 'amount_cents is a whole number of minor units, from 1 on'
    when coalesce(length(btrim(p_reference)), 0) = 0 or length(p_reference) > 255
      then 'reference needs 1 to 255 characters: what the payment is called elsewhere, so that it counts once'
  end;
  if v_problem is not null then
    perform billing.raise_invalid_payment(v_problem);
  end if;
end;
$$;

create or replace function billing.raise_invalid_payment(p_problem text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT400',
    message = 'INVALID_PAYMENT: ' || p_problem,
    hint = 'amount_cents is in minor units: 500 are 5.00 usd, and 500 jpy. method, reference, and the reason of a write-off, are texts.';
end;
$$;

-- p_paid_at null: now.
create or replace function billing.record_payment(
  p_organization_id uuid, p_invoice_id uuid, p_amount_cents numeric, p_method text, p_reference text, p_paid_at timestamptz
)
returns billing.payments
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_amount numeric := trim_scale(p_amount_cents);
  v_payment billing.payments;
begin
  perform billing.require_payment_details(v_amount, p_reference);
  if coalesce(length(btrim(p_method)), 0) = 0 or length(p_method) > 64 then
    perform billing.raise_invalid_payment('method needs 1 to 64 characters, such as bank_transfer');
  end if;
  -- A day ahead is a bank's day elsewhere.
  if not isfinite(p_paid_at) or p_paid_at > clock_timestamp() + interval '1 day' then
    perform billing.raise_invalid_payment('paid_at is a moment that is not ahead');
  end if;
  perform billing.take_ledger_lock(p_organization_id);

  select * into v_payment
  from billing.payments p
  where p.organization_id = p_organization_id and p.kind = 'payment' and p.reference = p_reference;
  if found then
    if (v_payment.invoice_id, v_payment.amount_cents, v_payment.method, v_payment.paid_at)
      is distinct from (p_invoice_id, v_amount, p_method, coalesce(p_paid_at, v_payment.paid_at))
    then
      perform billing.raise_reference_taken(p_reference, 'payment');
    end if;
    return v_payment;
  end if;

  if not exists (select from billing.invoices i where i.organization_id = p_organization_id and i.id = p_invoice_id) then
    perform billing.raise_no_invoice(p_invoice_id);
  end if;
  insert into billing.payments (organization_id, invoice_id, amount_cents, method, reference, paid_at, recorded_by)
  values (p_organization_id, p_invoice_id, v_amount, p_method, p_reference, coalesce(p_paid_at, clock_timestamp()), billing.author())
  returning * into v_payment;
  return v_payment;
end;
$$;

-- Of a payment, back to whoever made it. p_credit_note_id null: the invoice is to be paid again; else it comes out of the balance, which only
-- invoices of ours have.
create or replace function billing.record_refund(
  p_organization_id uuid, p_payment_id uuid, p_amount_cents numeric, p_reference text, p_credit_note_id uuid
)
returns billing.refunds
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_amount numeric := trim_scale(p_amount_cents);
  v_refund billing.refunds;
  v_note billing.credit_notes;
begin
  perform billing.require_payment_details(v_amount, p_reference);
  perform billing.take_ledger_lock(p_organization_id);

  select * into v_refund from billing.refunds r where r.organization_id = p_organization_id and r.reference = p_reference;
  if found then
    if (v_refund.payment_id, v_refund.amount_cents, v_refund.credit_note_id) is distinct from (p_payment_id, v_amount, p_credit_note_id) then
      perform billing.raise_reference_taken(p_reference, 'refund');
    end if;
    return v_refund;
  end if;

  if not exists (
    select from billing.payments p where p.organization_id = p_organization_id and p.id = p_payment_id and p.kind = 'payment'
  ) then
    raise exception using
      errcode = 'PT404',
      message = format('PAYMENT_NOT_FOUND: there is no payment %s in this organization', coalesce(p_payment_id::text, 'null')),
      hint = 'GET /payments lists them.';
  end if;
  if p_credit_note_id is not null then
    select * into v_note from billing.credit_notes c where c.organization_id = p_organization_id and c.id = p_credit_note_id;
    if not found then
      raise exception using
        errcode = 'PT404',
        message = format('CREDIT_NOTE_NOT_FOUND: there is no credit note %s in this organization', p_credit_note_id),
        hint = 'GET /credit_notes lists them.';
    end if;
  end if;

  insert into billing.refunds (organization_id, payment_id, credit_note_id, amount_cents, reference, recorded_by)
  values (p_organization_id, p_payment_id, p_credit_note_id, v_amount, p_reference, billing.author())
  returning * into v_refund;
  insert into billing.balance_entries (organization_id, payer_user_id, currency, kind, amount_cents, refund_id)
  select p_organization_id, v_note.payer_user_id, v_note.currency, 'refund', - v_amount, v_refund.id
  where p_credit_note_id is not null;
  return v_refund;
end;
$$;

-- The rest of an invoice that nobody will pay. Called again, it returns the same one.
create or replace function billing.write_off_invoice(p_organization_id uuid, p_invoice_id uuid, p_reason text)
returns billing.payments
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_invoice billing.invoices;
  v_settlement record;
  v_payment billing.payments;
begin
  if coalesce(length(btrim(p_reason)), 0) = 0 or length(p_reason) > 1000 then
    perform billing.raise_invalid_payment('reason needs 1 to 1000 characters');
  end if;
  perform billing.take_ledger_lock(p_organization_id);
  select * into v_invoice from billing.invoices i where i.organization_id = p_organization_id and i.id = p_invoice_id;
  if not found then
    perform billing.raise_no_invoice(p_invoice_id);
  end if;
  perform billing.require_payable(v_invoice);
  select * into v_settlement from billing.settlement_of(v_invoice);

  if v_settlement.status = 'uncollectible' then
    select * into strict v_payment
    from billing.payments p
    where p.organization_id = p_organization_id and p.invoice_id = p_invoice_id and p.kind = 'write_off'
    order by p.recorded_at desc
    limit 1;
    return v_payment;
  elsif v_settlement.status <> 'open' then
    raise exception using
      errcode = 'PT409',
      message = format('NOTHING_TO_WRITE_OFF: invoice %s has nothing left to be paid', v_invoice.number),
      hint = 'GET /invoices shows what is left of each: remaining_cents.';
  end if;

  insert into billing.payments (organization_id, invoice_id, kind, amount_cents, method, reference, reason, recorded_by)
  select
    p_organization_id, p_invoice_id, 'write_off', v_settlement.remaining_cents, 'write_off',
    -- What was written off, paid after all and paid back may be owed and written off once more.
    concat_ws('/', v_invoice.number, nullif(count(*), 0)), p_reason, billing.author()
  from billing.payments p
  where p.organization_id = p_organization_id and p.invoice_id = p_invoice_id and p.kind = 'write_off'
  returning * into v_payment;
  return v_payment;
end;
$$;

alter function billing.record_payment(uuid, uuid, numeric, text, text, timestamptz) owner to goldleaves_kernel;
alter function billing.record_refund(uuid, uuid, numeric, text, uuid) owner to goldleaves_kernel;
alter function billing.write_off_invoice(uuid, uuid, text) owner to goldleaves_kernel;
grant execute on function billing.require_payment_details(numeric, text), billing.raise_invalid_payment(text) to goldleaves_kernel;
grant execute on function billing.record_payment(uuid, uuid, numeric, text, text, timestamptz),
  billing.record_refund(uuid, uuid, numeric, text, uuid), billing.write_off_invoice(uuid, uuid, text) to platform_admin;
