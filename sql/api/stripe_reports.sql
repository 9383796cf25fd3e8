-- Usage on its way to Stripe, for the provider's staff.
create view api.stripe_meter_event_reports with (security_invoker) as
select
  organization_id, meter_code as meter, bucket_start, sequence, quantity, identifier, customer_id, event_name, period_start, happened_at, status,
  attempts, next_attempt_at, first_sent_at, acknowledged_at, last_error, created_at
from stripe.meter_event_reports;

comment on view api.stripe_meter_event_reports is 'Usage that is reported to Stripe, a meter event a row, and what became of it. For platform_admin.';
comment on column api.stripe_meter_event_reports.organization_id is 'Whose usage it is.';
comment on column api.stripe_meter_event_reports.meter is 'Code of the meter.';
comment on column api.stripe_meter_event_reports.bucket_start is 'The hour in which it was used, or has last changed where hours do not add up (UTC).';
comment on column api.stripe_meter_event_reports.sequence is 'An hour may have several: what comes to it later is another one. From 1.';
comment on column api.stripe_meter_event_reports.quantity is 'Whole units of the meter, which come to what was reported before.';
comment on column api.stripe_meter_event_reports.identifier is 'Under which Stripe counts it once.';
comment on column api.stripe_meter_event_reports.customer_id is 'The customer at Stripe.';
comment on column api.stripe_meter_event_reports.event_name is 'What the meter is called at Stripe.';
comment on column api.stripe_meter_event_reports.period_start is 'When the billing period begins that it is of (UTC).';
comment on column api.stripe_meter_event_reports.happened_at is 'When it happened, as Stripe is told (UTC); null until it is first sent.';
comment on column api.stripe_meter_event_reports.status is 'pending; acknowledged: Stripe has it; canceling, canceled: it is, or was, taken back; rejected: Stripe said what is wrong with it; uncertain: nobody knows whether Stripe has it, and it is too late to send it again.';
comment on column api.stripe_meter_event_reports.attempts is 'How often it was sent, or asked to be canceled, as far as that may have arrived.';
comment on column api.stripe_meter_event_reports.next_attempt_at is 'When one that waits is sent next (UTC).';
comment on column api.stripe_meter_event_reports.first_sent_at is 'When it was first sent (UTC); null until then.';
comment on column api.stripe_meter_event_reports.acknowledged_at is 'When Stripe had it (UTC); null until then.';
comment on column api.stripe_meter_event_reports.last_error is 'Why it was not taken, last; null when it was.';
comment on column api.stripe_meter_event_reports.created_at is 'When it was made (UTC).';

grant select on api.stripe_meter_event_reports to platform_admin;
