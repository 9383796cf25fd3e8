-- What Stripe has charged, and whose customers are whose, means nothing to the version before: only while there are none does it go back.
set local role goldleaves_owner;
alter table stripe.customers no force row level security;
alter table billing.invoices no force row level security;
alter table billing.payments no force row level security;
alter table billing.subscriptions no force row level security;
do $$
begin
  if exists (select from stripe.customers)
    or exists (select from billing.invoices where kind = 'statement')
    or exists (select from billing.payments where stripe_invoice_id is not null)
    or exists (select from billing.subscriptions where managed_by = 'stripe')
  then
    raise exception 'there are customers at Stripe, or invoices or payments of theirs, which the version before does not know'
      using hint = 'Restore a backup instead.';
  end if;
end
$$;
alter table billing.invoices force row level security;
alter table billing.payments force row level security;
alter table billing.subscriptions force row level security;
revoke usage on schema stripe from sidecar;
revoke usage on schema ops from monitor;
alter table stripe.report_marks drop column reported;
alter table billing.payments drop column stripe_invoice_id, alter column invoice_id set not null;
alter table billing.subscription_phases drop column fee_by_stripe;
alter table billing.subscriptions drop column managed_by;
alter table billing.invoices drop column kind, alter column number set not null;
alter table billing.billing_periods drop column invoice_mode;
alter table billing.billing_terms drop column invoice_mode;
alter table billing.defaults drop column invoice_mode;
drop table stripe.reconciliations;
drop table stripe.reconciled_periods;
drop table stripe.invoice_items;
drop table stripe.meter_event_reports;
drop table stripe.report_positions;
drop table stripe.report_periods;
drop table stripe.reported_usage;
drop table stripe.report_queue;
drop table stripe.entitlements;
drop table stripe.checkout_sessions;
drop table stripe.meters;
drop table stripe.plan_prices;
drop table stripe.disputes;
drop table stripe.invoices;
drop table stripe.subscriptions;
drop table stripe.refetches;
drop table stripe.webhook_events;
drop table stripe.customers;
reset role;
