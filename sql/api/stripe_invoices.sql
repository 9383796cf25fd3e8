-- Invoices as Stripe has them, and the amounts that were sent there.
create view api.stripe_invoices with (security_invoker) as
select
  id,
  organization_id,
  customer_id,
  subscription_id,
  number,
  status,
  currency,
  total_cents,
  amount_due_cents,
  amount_paid_cents,
  period_start,
  period_end,
  hosted_invoice_url,
  is_live
from stripe.invoices;

create trigger refuse_write instead of insert or update or delete on api.stripe_invoices
  for each row execute function billing.refuse_write();

comment on view api.stripe_invoices is 'Invoices as Stripe has them: where billing_periods.invoice_mode is not local, these are what is paid. As '
  'Stripe''s events told it; Stripe says it first.';
comment on column api.stripe_invoices.id is 'Stripe''s id, such as in_1….';
comment on column api.stripe_invoices.organization_id is 'Whose it is.';
comment on column api.stripe_invoices.customer_id is 'The customer at Stripe, such as cus_….';
comment on column api.stripe_invoices.subscription_id is 'The subscription at Stripe that it is for; null when it is for none.';
comment on column api.stripe_invoices.number is 'Stripe''s number; null in drafts.';
comment on column api.stripe_invoices.status is 'As Stripe has it: draft, open, paid, void or uncollectible; null when no event has told yet.';
comment on column api.stripe_invoices.currency is 'ISO 4217, lowercase, such as usd.';
comment on column api.stripe_invoices.total_cents is 'In whole minor units of currency: 30100 is 301.00 usd.';
comment on column api.stripe_invoices.amount_due_cents is 'What was to be paid when it was finalized.';
comment on column api.stripe_invoices.amount_paid_cents is 'What was paid.';
comment on column api.stripe_invoices.period_start is 'As Stripe has it (UTC): of what was charged for later.';
comment on column api.stripe_invoices.period_end is 'As Stripe has it (UTC).';
comment on column api.stripe_invoices.hosted_invoice_url is 'Stripe''s page of it, where it can be paid; null in drafts.';
comment on column api.stripe_invoices.is_live is 'False: of Stripe''s test mode.';

grant select on api.stripe_invoices to member, platform_admin;

create view api.stripe_invoice_items with (security_invoker) as
select
  organization_id, id, kind, invoice_id, line_number, meter_code as meter, customer_id, subscription_id, amount_cents, currency, description,
  period_start, period_end, status, attempts, next_attempt_at, first_sent_at, acknowledged_at, stripe_id, last_error, created_at
from stripe.invoice_items;

comment on view api.stripe_invoice_items is 'Amounts on their way to Stripe''s invoices: lines of statements, and credits. For platform_admin.';
comment on column api.stripe_invoice_items.organization_id is 'Whose it is.';
comment on column api.stripe_invoice_items.id is 'Its id: goldleaves_item in the metadata at Stripe.';
comment on column api.stripe_invoice_items.kind is 'line: of a statement; credit: for usage that was taken back when Stripe took nothing back any '
  'more.';
comment on column api.stripe_invoice_items.invoice_id is 'The statement; null for a credit.';
comment on column api.stripe_invoice_items.line_number is 'The line of the statement; null for a credit.';
comment on column api.stripe_invoice_items.meter is 'Code of the meter that a credit is for; null for a line.';
comment on column api.stripe_invoice_items.customer_id is 'The customer at Stripe; null until it is first sent.';
comment on column api.stripe_invoice_items.subscription_id is 'The subscription at Stripe on whose next invoice it is; null: on the next one of '
  'the customer.';
comment on column api.stripe_invoice_items.amount_cents is 'In whole minor units of currency; below zero it takes off.';
comment on column api.stripe_invoice_items.currency is 'ISO 4217, lowercase, such as usd.';
comment on column api.stripe_invoice_items.description is 'What stands on Stripe''s invoice.';
comment on column api.stripe_invoice_items.period_start is 'First moment of the billing period (UTC).';
comment on column api.stripe_invoice_items.period_end is 'First moment after the billing period (UTC).';
comment on column api.stripe_invoice_items.status is 'pending; acknowledged: Stripe has it; rejected: Stripe said what is wrong with it; uncertain: nobody '
  'knows whether Stripe has it, and it is looked for there.';
comment on column api.stripe_invoice_items.attempts is 'How often it was sent, as far as that may have arrived.';
comment on column api.stripe_invoice_items.next_attempt_at is 'When one that waits is sent next (UTC).';
comment on column api.stripe_invoice_items.first_sent_at is 'When it was first sent (UTC); null until then.';
comment on column api.stripe_invoice_items.acknowledged_at is 'When Stripe had it (UTC); null until then.';
comment on column api.stripe_invoice_items.stripe_id is 'What it is called at Stripe, such as ii_1…; null until Stripe has it.';
comment on column api.stripe_invoice_items.last_error is 'Why it was not taken, last; null when it was.';
comment on column api.stripe_invoice_items.created_at is 'When it was made (UTC).';

grant select on api.stripe_invoice_items to platform_admin;
