-- What differs between us and Stripe, for the provider's staff.
create view api.stripe_reconciliations with (security_invoker) as
select organization_id, period_start, kind, subject, ours, theirs, explained, drift, cause, checked_at
from stripe.reconciliations;

comment on view api.stripe_reconciliations is 'What we have recorded, reported and charged of a billing period, against what Stripe has, where Stripe''s invoice counts: compared each day, and by goldleaves stripe reconcile. For platform_admin.';
comment on column api.stripe_reconciliations.organization_id is 'Whose billing period it is.';
comment on column api.stripe_reconciliations.period_start is 'When the billing period begins (UTC).';
comment on column api.stripe_reconciliations.kind is 'usage: of a meter, in its units; invoice_line: of an invoice at Stripe, in units or in Stripe''s smallest unit of the currency; invoice_item: an amount that Stripe was sent, in that unit.';
comment on column api.stripe_reconciliations.subject is 'Code of the meter; or id of the invoice at Stripe, and which of its lines; or id of the amount.';
comment on column api.stripe_reconciliations.ours is 'What was recorded; of an invoice line what was reported, or what it costs here.';
comment on column api.stripe_reconciliations.theirs is 'What Stripe has; null where it does not say.';
comment on column api.stripe_reconciliations.explained is 'What of the difference is as it should be: it waits to be sent, say, or was credited.';
comment on column api.stripe_reconciliations.drift is 'theirs + explained - ours: below zero Stripe lacks something, above zero it has too much.';
comment on column api.stripe_reconciliations.cause is 'Why they differ, in words; in step where they do not.';
comment on column api.stripe_reconciliations.checked_at is 'When they were compared (UTC).';

grant select on api.stripe_reconciliations to platform_admin;
