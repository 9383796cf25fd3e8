-- What payments and refunds must not do, whoever writes them: pay more than is owed, pay back more than was paid.
-- Rows are looked at one by one, under the lock of the ledger, so that of two at once the second one sees the first.

create or replace function billing.guard_payments()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_invoice billing.invoices;
  v_settlement record;
  v_left numeric;
begin
  perform billing.take_ledger_lock(new.organization_id);
  new.recorded_at := clock_timestamp();
  select * into v_invoice from billing.invoices i where i.organization_id = new.organization_id and i.id = new.invoice_id;
  if not found then
    return new;  -- the foreign key says so
  end if;
  perform billing.require_payable(v_invoice);
  select * into v_settlement from billing.settlement_of(v_invoice);
  -- What was written off may still be paid, and is not written off again.
  v_left := v_settlement.remaining_cents + case new.kind when 'payment' then v_settlement.written_off_cents else 0 end;
  if new.amount_cents > v_left then
    raise exception using
      errcode = 'PT409',
      message = format(
        'PAYMENT_TOO_HIGH: invoice %s has %s left to be paid, not %s', v_invoice.number, trim_scale(v_left), new.amount_cents
      ),
      hint = 'Record what was paid for another invoice with that one. GET /invoices shows what is left of each: remaining_cents.';
  end if;
  return new;
end;
$$;

create or replace function billing.guard_refunds()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_payment record;
  v_note billing.credit_notes;
  v_left numeric;
begin
  perform billing.take_ledger_lock(new.organization_id);
  new.recorded_at := clock_timestamp();
  select p.kind, p.amount_cents, p.reference, i.payer_user_id, i.currency into v_payment
  from billing.payments p
  left join billing.invoices i on i.organization_id = p.organization_id and i.id = p.invoice_id
  where p.organization_id = new.organization_id
    and p.id = new.payment_id;
  if not found then
    return new;  -- the foreign key says so
  end if;

  select v_payment.amount_cents - coalesce(sum(r.amount_cents), 0) into v_left
  from billing.refunds r
  where r.organization_id = new.organization_id
    and r.payment_id = new.payment_id;
  if v_payment.kind <> 'payment' then
    v_left := 0;
  end if;
  if new.amount_cents > v_left then
    perform billing.raise_refund_too_high(
      format('payment %s has %s left to be paid back, not %s', v_payment.reference, trim_scale(v_left), new.amount_cents)
    );
  end if;
  if new.credit_note_id is null then
    return new;
  end if;

  select * into v_note from billing.credit_notes c where c.organization_id = new.organization_id and c.id = new.credit_note_id;
  if not found then
    return new;
  end if;
  -- What Stripe's invoice was paid with is never on a balance here.
  if v_note.payer_user_id is distinct from v_payment.payer_user_id or v_note.currency is distinct from v_payment.currency then
    perform billing.raise_inconsistent(format('credit note %s is not for whoever made payment %s', v_note.number, v_payment.reference));
  end if;
  select v_note.to_balance_cents - coalesce(sum(r.amount_cents), 0) into v_left
  from billing.refunds r
  where r.organization_id = new.organization_id
    and r.credit_note_id = new.credit_note_id;
  if new.amount_cents > v_left then
    perform billing.raise_refund_too_high(
      format('credit note %s has %s left to be paid back, not %s', v_note.number, trim_scale(v_left), new.amount_cents)
    );
  end if;
  v_left := billing.balance_of(new.organization_id, v_note.payer_user_id, v_note.currency);
  if new.amount_cents > v_left then
    perform billing.raise_refund_too_high(
      format('of credit note %s no more than %s is still on the balance, not %s', v_note.number, trim_scale(v_left), new.amount_cents)
    );
  end if;
  return new;
end;
$$;

-- Where Stripe's invoice counts ours is a statement: who paid both would pay twice.
create or replace function billing.require_payable(p_invoice billing.invoices)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  if p_invoice.kind = 'statement' then
    raise exception using
      errcode = 'PT409',
      message = format('STATEMENT_NOT_PAYABLE: %s is a statement: Stripe''s invoice is what is paid and credited', p_invoice.id),
      hint = 'Take payments and credit notes on the invoice at Stripe. GET /stripe_invoices lists them.';
  end if;
end;
$$;

create or replace function billing.raise_refund_too_high(p_what text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('REFUND_TOO_HIGH: %s', p_what),
    hint = 'GET /payments shows what was paid back: refunded_cents; GET /balances what later invoices have not taken off yet.';
end;
$$;

alter function billing.guard_payments() owner to goldleaves_kernel;
alter function billing.guard_refunds() owner to goldleaves_kernel;
grant execute on function billing.require_payable(billing.invoices), billing.raise_refund_too_high(text) to goldleaves_kernel;

create or replace trigger guard before insert on billing.payments
  for each row execute function billing.guard_payments();
create or replace trigger guard before insert on billing.refunds
  for each row execute function billing.guard_refunds();
