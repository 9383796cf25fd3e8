-- Payments, what was paid back of them, and what was written off.
create view api.payments with (security_invoker) as
select
  p.id,
  p.organization_id,
  coalesce(i.billing_entity_type, 'organization') as billing_entity_type,
  coalesce(i.billing_entity_id, p.organization_id) as billing_entity_id,
  p.invoice_id,
  p.kind,
  p.amount_cents,
  r.refunded_cents,
  coalesce(i.currency, s.currency) as currency,
  p.method,
  p.reference,
  p.reason,
  p.paid_at,
  p.recorded_by,
  p.recorded_at,
  p.stripe_invoice_id
from billing.payments p
left join billing.invoices i on i.organization_id = p.organization_id and i.id = p.invoice_id
left join stripe.invoices s on s.organization_id = p.organization_id and s.id = p.stripe_invoice_id
cross join lateral (
  select coalesce(sum(r.amount_cents), 0) as refunded_cents
  from billing.refunds r
  where r.organization_id = p.organization_id
    and r.payment_id = p.id
) as r;

create trigger refuse_write instead of insert or update or delete on api.payments
  for each row execute function billing.refuse_write();

comment on view api.payments is 'What was paid for invoices, Stripe''s among them, and what was written off of ours.';
comment on column api.payments.id is 'What refunds.payment_id points at. Never null.';
comment on column api.payments.organization_id is 'Whose invoice it is for. Never null.';
comment on column api.payments.billing_entity_type is 'Who paid, as in the invoice: user or organization. What is paid at Stripe is the '
  'organization''s. Never null.';
comment on column api.payments.billing_entity_id is 'The id of the user or of the organization. Never null.';
comment on column api.payments.invoice_id is 'The invoice; null for one of Stripe''s.';
comment on column api.payments.kind is 'payment; write_off: nobody will pay it. Never null.';
comment on column api.payments.amount_cents is 'In whole minor units of currency. Never null.';
comment on column api.payments.refunded_cents is 'What of it was paid back. Never null.';
comment on column api.payments.currency is 'That of the invoice, such as usd. Never null.';
comment on column api.payments.method is 'How it was paid, such as bank_transfer. Never null.';
comment on column api.payments.reference is 'What it is called elsewhere: a payment counts once. Never null.';
comment on column api.payments.reason is 'Why it was written off; null for payments.';
comment on column api.payments.paid_at is 'When it was paid (UTC). Never null.';
comment on column api.payments.recorded_by is 'Who recorded it: the subject of the token, or the role of the database session. Never null.';
comment on column api.payments.recorded_at is 'When it was recorded (UTC). Never null.';
comment on column api.payments.stripe_invoice_id is 'Stripe''s invoice, in stripe_invoices; null for one of ours.';

create view api.refunds with (security_invoker) as
select
  r.id,
  r.organization_id,
  coalesce(i.billing_entity_type, 'organization') as billing_entity_type,
  coalesce(i.billing_entity_id, r.organization_id) as billing_entity_id,
  p.invoice_id,
  r.payment_id,
  r.credit_note_id,
  r.amount_cents,
  coalesce(i.currency, s.currency) as currency,
  r.reference,
  r.refunded_at,
  r.recorded_by,
  r.recorded_at,
  p.stripe_invoice_id
from billing.refunds r
join billing.payments p on p.organization_id = r.organization_id and p.id = r.payment_id
left join billing.invoices i on i.organization_id = p.organization_id and i.id = p.invoice_id
left join stripe.invoices s on s.organization_id = p.organization_id and s.id = p.stripe_invoice_id;

create trigger refuse_write instead of insert or update or delete on api.refunds
  for each row execute function billing.refuse_write();

comment on view api.refunds is 'What was paid back: for a credit note, out of the balance; or without one, and then the invoice is to be paid again.';
comment on column api.refunds.id is 'Its id. Never null.';
comment on column api.refunds.organization_id is 'Whose payment it was. Never null.';
comment on column api.refunds.billing_entity_type is 'Who had paid, as in the invoice: user or organization. What was paid at Stripe is the '
  'organization''s. Never null.';
comment on column api.refunds.billing_entity_id is 'The id of the user or of the organization. Never null.';
comment on column api.refunds.invoice_id is 'The invoice that the payment was for; null for one of Stripe''s.';
comment on column api.refunds.payment_id is 'The payment. Never null.';
comment on column api.refunds.credit_note_id is 'The credit note that it pays out; null when it is for none.';
comment on column api.refunds.amount_cents is 'In whole minor units of currency. Never null.';
comment on column api.refunds.currency is 'That of the invoice, such as usd. Never null.';
comment on column api.refunds.reference is 'What it is called elsewhere: a refund counts once. Never null.';
comment on column api.refunds.refunded_at is 'When it was paid back (UTC). Never null.';
comment on column api.refunds.recorded_by is 'Who recorded it: the subject of the token, or the role of the database session. Never null.';
comment on column api.refunds.recorded_at is 'When it was recorded (UTC). Never null.';
comment on column api.refunds.stripe_invoice_id is 'Stripe''s invoice that the payment was for; null for one of ours.';

grant select on api.payments, api.refunds to member, platform_admin;

create function api.record_payment(invoice_id uuid, amount_cents numeric, method text, reference text, paid_at timestamptz default null)
returns api.payments
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_id uuid;
begin
  perform tenancy.require_staff('records payments', 'GET /payments lists them.');
  perform tenancy.require_organization();
  select p.id into v_id
  from billing.record_payment(
    tenancy.current_org(), record_payment.invoice_id, record_payment.amount_cents, record_payment.method, record_payment.reference,
    record_payment.paid_at
  ) p;
  return (select p from api.payments p where p.organization_id = tenancy.current_org() and p.id = v_id);
end;
$$;

comment on function api.record_payment(uuid, numeric, text, text, timestamptz) is $$Record a payment of an invoice

For platform_admin. amount_cents is in whole minor units of the invoice's currency, at most what is left to be paid; what was written off may
still be paid. method is a word such as bank_transfer. reference is what the payment is called elsewhere, and makes it safe to call twice: the same
payment is returned. Without paid_at it was paid now. The invoice is one of the organization that X-Organization-ID names.

Errors: ORGANIZATION_REQUIRED, INVALID_PAYMENT (400), ROLE_REQUIRED (403), INVOICE_NOT_FOUND (404), PAYMENT_TOO_HIGH, REFERENCE_TAKEN,
STATEMENT_NOT_PAYABLE (409).$$;

create function api.record_refund(payment_id uuid, amount_cents numeric, reference text, credit_note_id uuid default null)
returns api.refunds
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_id uuid;
begin
  perform tenancy.require_staff('records refunds', 'GET /refunds lists them.');
  perform tenancy.require_organization();
  select r.id into v_id
  from billing.record_refund(
    tenancy.current_org(), record_refund.payment_id, record_refund.amount_cents, record_refund.reference, record_refund.credit_note_id
  ) r;
  return (select r from api.refunds r where r.organization_id = tenancy.current_org() and r.id = v_id);
end;
$$;

comment on function api.record_refund(uuid, numeric, text, uuid) is $$Record what was paid back of a payment

For platform_admin. amount_cents is at most what was paid and not paid back yet. With credit_note_id it is what that note put on the balance, and
comes out of it; without, the payment counts for that much less, and the invoice is to be paid again; so it is with what was paid at Stripe, which no credit note is
for. reference is what it is called elsewhere,
and makes it safe to call twice: the same refund is returned.

Errors: ORGANIZATION_REQUIRED, INVALID_PAYMENT (400), ROLE_REQUIRED (403), PAYMENT_NOT_FOUND, CREDIT_NOTE_NOT_FOUND (404), REFUND_TOO_HIGH,
REFERENCE_TAKEN, LEDGER_INCONSISTENT (409) when the credit note is for somebody else.$$;

create function api.write_off_invoice(invoice_id uuid, reason text)
returns api.payments
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_id uuid;
begin
  perform tenancy.require_staff('writes invoices off', 'GET /invoices shows their status.');
  perform tenancy.require_organization();
  select p.id into v_id
  from billing.write_off_invoice(tenancy.current_org(), write_off_invoice.invoice_id, write_off_invoice.reason) p;
  return (select p from api.payments p where p.organization_id = tenancy.current_org() and p.id = v_id);
end;
$$;

comment on function api.write_off_invoice(uuid, text) is $$Write off what nobody will pay of an invoice

For platform_admin. All that is left to be paid is no more asked for: the invoice is uncollectible. It may still be paid. Safe to call twice.
Returns the entry among payments, of kind write_off.

Errors: ORGANIZATION_REQUIRED, INVALID_PAYMENT (400), ROLE_REQUIRED (403), INVOICE_NOT_FOUND (404), NOTHING_TO_WRITE_OFF,
STATEMENT_NOT_PAYABLE (409).$$;

grant execute on function api.record_payment(uuid, numeric, text, text, timestamptz), api.record_refund(uuid, numeric, text, uuid),
  api.write_off_invoice(uuid, text) to member, service, platform_admin;
