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
comment on column api.stripe_invoices.total_cents is 'In what Stripe takes for the smallest unit of currency.';
comment on column api.stripe_invoices.amount_due_cents is 'What was to be paid when it was finalized.';
comment on column api.stripe_invoices.amount_paid_cents is 'What was paid.';
comment on column api.stripe_invoices.period_start is 'As Stripe has it (UTC): of what was charged for later.';
comment on column api.stripe_invoices.period_end is 'As Stripe has it (UTC).';
comment on column api.stripe_invoices.hosted_invoice_url is 'Stripe''s page of it, where it can be paid; null in drafts.';
comment on column api.stripe_invoices.is_live is 'False: of Stripe''s test mode.';

grant select on api.stripe_invoices to member, platform_admin;
