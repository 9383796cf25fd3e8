-- Stripe: an inbox of its webhooks and what they say, whose customers are whose, and an outbox of usage. Whose invoice counts, ours or Stripe's.
set local role goldleaves_owner;

-- Customers at Stripe. The key of one is Stripe's, so that no two organizations can have the same one.
create table stripe.customers (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id text not null check (length(id) between 1 and 255),
  email text check (length(email) <= 512),
  has_payment_method boolean not null default false,
  is_live boolean not null,
  linked_at timestamptz not null default clock_timestamp(),
  linked_by text not null,
  deleted_at timestamptz,
  primary key (organization_id, id),
  unique (id)
);
comment on constraint customers_id_key on stripe.customers is
  'goldleaves lint key_without_organization: no tenant writes it, so none can probe which customers there are';
create unique index customers_one_at_a_time on stripe.customers (organization_id) where deleted_at is null;

-- What Stripe sent, under its own ids, before anything is made of it. facts: what of the object we use, without what the payload does not say.
create table stripe.webhook_events (
  id text primary key check (length(id) between 1 and 255),
  type text not null,
  api_version text,
  -- By Stripe's clock, in whole seconds.
  created_at timestamptz not null,
  is_live boolean not null,
  object_id text,
  customer_id text,
  -- What else it tells of: invoices tell of their subscription, too.
  subscription_id text,
  facts jsonb not null default '{}',
  payload jsonb not null,
  -- received: stored, and not tried yet; failed: it is tried again; dead: it is not, until it is replayed.
  status text not null default 'received' check (status in ('received', 'applied', 'stale', 'ignored', 'unlinked', 'failed', 'dead')),
  message text,
  -- Goes with it: payloads tell of people.
  organization_id uuid references tenancy.organizations (id) on delete cascade,
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default clock_timestamp(),
  received_at timestamptz not null default clock_timestamp(),
  settled_at timestamptz,
  -- When the provider's application was sent a message of it: once, however often it is replayed.
  told_at timestamptz
);
comment on constraint webhook_events_pkey on stripe.webhook_events is
  'goldleaves lint key_without_organization: of whom it is may be known later, and no tenant reads or writes it';
create index webhook_events_of_subscription on stripe.webhook_events (subscription_id, created_at) where subscription_id is not null;
comment on index stripe.webhook_events_of_subscription is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
create index webhook_events_of_object on stripe.webhook_events (object_id, created_at) where object_id is not null;
comment on index stripe.webhook_events_of_object is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
create index webhook_events_unlinked on stripe.webhook_events (customer_id) where status = 'unlinked';
comment on index stripe.webhook_events_unlinked is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
create index webhook_events_unsettled on stripe.webhook_events (subscription_id)
  where status in ('received', 'failed', 'dead', 'unlinked') and subscription_id is not null;
comment on index stripe.webhook_events_unsettled is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
create index webhook_events_due on stripe.webhook_events (next_attempt_at) where status in ('received', 'failed');
comment on index stripe.webhook_events_due is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
create index webhook_events_dead on stripe.webhook_events (received_at) where status = 'dead';
comment on index stripe.webhook_events_dead is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
-- Of those that were settled long ago nothing but the facts is kept.
create index webhook_events_settled on stripe.webhook_events (settled_at) where settled_at is not null and payload <> '{}';
comment on index stripe.webhook_events_settled is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
create index webhook_events_of_customer on stripe.webhook_events (customer_id) where subscription_id = object_id;
comment on index stripe.webhook_events_of_customer is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
-- What names an invoice, a charge or a payment intent, to find which payment it is of.
create index webhook_events_of_payment on stripe.webhook_events using gin (facts jsonb_path_ops)
  where type in ('charge.refunded', 'charge.dispute.created', 'invoice_payment.paid');
comment on index stripe.webhook_events_of_payment is
  'goldleaves lint key_without_organization: what Stripe sends names no organization';
create index webhook_events_of_organization on stripe.webhook_events (organization_id);

-- Objects that Stripe is asked for, since events of the same second do not say which one came last, or say too little.
create table stripe.refetches (
  object_type text not null check (object_type in ('subscription', 'invoice', 'charge', 'event')),
  object_id text not null,
  -- How often it was asked for since it was written; the answer counts for what was asked until then.
  asked bigint not null default 1,
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default clock_timestamp(),
  last_error text,
  primary key (object_type, object_id)
);
create index refetches_due on stripe.refetches (next_attempt_at);

-- Subscriptions as Stripe has them. What they mean here are phases: see billing.subscription_phases.
create table stripe.subscriptions (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id text not null,
  customer_id text not null,
  -- That of billing.subscriptions: made of Stripe's id, so that it is the same in whatever order events come.
  subscription_id uuid not null,
  status text not null,
  plan_code text references billing.plans (code) on delete restrict,
  price_id text,
  current_period_start timestamptz,
  current_period_end timestamptz,
  trial_end timestamptz,
  cancel_at timestamptz,
  canceled_at timestamptz,
  ended_at timestamptz,
  is_live boolean not null,
  -- All that is known of it.
  facts jsonb not null default '{}',
  -- The last event that tells of it, by Stripe's clock.
  latest_event_id text not null,
  latest_event_at timestamptz not null,
  primary key (organization_id, id),
  unique (id)
);
comment on constraint subscriptions_id_key on stripe.subscriptions is
  'goldleaves lint key_without_organization: no tenant writes it, so none can probe which subscriptions there are';
comment on constraint subscriptions_plan_code_fkey on stripe.subscriptions is
  'goldleaves lint reference_without_organization: plans are the same for everybody, and no tenant writes it';
create index subscriptions_plan on stripe.subscriptions (plan_code);

-- Invoices as Stripe has them.
create table stripe.invoices (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id text not null,
  customer_id text not null,
  subscription_id text,
  number text,
  status text,
  currency text,
  total_cents numeric,
  amount_due_cents numeric,
  amount_paid_cents numeric,
  period_start timestamptz,
  period_end timestamptz,
  hosted_invoice_url text,
  charge_id text,
  payment_intent_id text,
  is_live boolean not null,
  -- All of the above as the last event left it, and what else we use.
  facts jsonb not null default '{}',
  latest_event_id text not null,
  latest_event_at timestamptz not null,
  primary key (organization_id, id),
  unique (id)
);
comment on constraint invoices_id_key on stripe.invoices is
  'goldleaves lint key_without_organization: no tenant writes it, so none can probe which invoices there are';
create index invoices_charge on stripe.invoices (charge_id) where charge_id is not null;
create index invoices_payment_intent on stripe.invoices (payment_intent_id) where payment_intent_id is not null;
comment on index stripe.invoices_charge is 'goldleaves lint key_without_organization: what Stripe tells of a charge names no organization';
comment on index stripe.invoices_payment_intent is
  'goldleaves lint key_without_organization: what Stripe tells of a charge names no organization';

create table stripe.disputes (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id text not null,
  charge_id text not null,
  amount_cents numeric not null,
  currency text not null,
  reason text,
  status text,
  created_at timestamptz not null,
  primary key (organization_id, id)
);

-- Which prices at Stripe are which plan of ours.
create table stripe.plan_prices (
  price_id text primary key check (length(price_id) between 1 and 255),
  plan_code text not null references billing.plans (code) on delete restrict,
  created_at timestamptz not null default clock_timestamp()
);
create index plan_prices_plan on stripe.plan_prices (plan_code);

-- Which meters of ours Stripe has, under which name events are sent to it.
create table stripe.meters (
  meter_code text primary key references metering.meters (code) on delete restrict,
  id text not null unique check (length(id) between 1 and 255),
  event_name text not null unique check (length(event_name) between 1 and 100),
  created_at timestamptz not null default clock_timestamp()
);

-- Checkouts that we began: what is completed of others links nobody.
create table stripe.checkout_sessions (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id text not null,
  plan_code text not null references billing.plans (code) on delete restrict,
  created_at timestamptz not null default clock_timestamp(),
  created_by text not null,
  -- What makes two of them the same: see stripe.begin_checkout().
  asked text not null default '',
  primary key (organization_id, id),
  unique (id)
);
comment on constraint checkout_sessions_id_key on stripe.checkout_sessions is
  'goldleaves lint key_without_organization: no tenant writes it, so none can probe which checkouts there are';
comment on constraint checkout_sessions_plan_code_fkey on stripe.checkout_sessions is
  'goldleaves lint reference_without_organization: plans are the same for everybody, and no tenant writes it';
create index checkout_sessions_plan on stripe.checkout_sessions (plan_code);

-- Features that Stripe says a customer has, by their lookup keys.
create table stripe.entitlements (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  feature text not null,
  primary key (organization_id, feature)
);

-- Whose usage has changed since reports were made of it. Rows are only added, and removed by whoever has looked, as in billing.alert_queue.
create table stripe.report_queue (
  organization_id uuid not null,
  id uuid not null default ops.new_id(),
  meter_code text not null,
  bucket_start timestamptz not null,
  queued_at timestamptz not null default now(),
  -- What has changed was recorded from this position on.
  generation integer not null default 0,
  xid xid8 not null default '0',
  primary key (organization_id, id)
);
create index report_queue_of_meter on stripe.report_queue (organization_id, meter_code);
create index report_queue_queued on stripe.report_queue (queued_at);
comment on index stripe.report_queue_queued is
  'goldleaves lint key_without_organization: the sidecar reports usage of all organizations';

-- What of a meter reports have been made of, an hour each; of what does not add up over hours, a billing period each. As the meter reads it, not
-- in its units: so what is left of each adds up to whole units.
create table stripe.reported_usage (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  meter_code text not null references metering.meters (code) on delete restrict,
  bucket_start timestamptz not null,
  quantity numeric not null,
  primary key (organization_id, meter_code, bucket_start)
) with (fillfactor = 70);
create index reported_usage_meter on stripe.reported_usage (meter_code);
comment on constraint reported_usage_meter_code_fkey on stripe.reported_usage is
  'goldleaves lint reference_without_organization: meters are the same for everybody, and no tenant writes it';

-- What of a billing period no report says: less than a unit, or below zero what could not be taken back yet. As the meter reads it. Periods are
-- closed after they are finalized: what is left of a unit goes on to the next one, and what was reported too much becomes a credit.
create table stripe.report_periods (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  meter_code text not null references metering.meters (code) on delete restrict,
  period_start timestamptz not null,
  carried numeric not null default 0,
  -- What came from the period before, or went to the next one (below zero).
  passed_on numeric not null default 0,
  credited numeric not null default 0 check (credited >= 0),
  closed_at timestamptz,
  primary key (organization_id, meter_code, period_start)
) with (fillfactor = 70);
create index report_periods_meter on stripe.report_periods (meter_code);
create index report_periods_open on stripe.report_periods (period_start) where closed_at is null;
comment on index stripe.report_periods_open is
  'goldleaves lint key_without_organization: the sidecar reports usage of all organizations';
create index report_periods_owing on stripe.report_periods (organization_id, meter_code) where carried < 0;
comment on constraint report_periods_meter_code_fkey on stripe.report_periods is
  'goldleaves lint reference_without_organization: meters are the same for everybody, and no tenant writes it';

-- The position that reports of a meter were made until.
create table stripe.report_positions (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  meter_code text not null references metering.meters (code) on delete restrict,
  generation integer not null,
  xid xid8 not null,
  -- When people last said that what was uncertain is to be sent again, so that they know what Stripe has.
  resent_at timestamptz,
  primary key (organization_id, meter_code)
) with (fillfactor = 70);
create index report_positions_meter on stripe.report_positions (meter_code);
comment on constraint report_positions_meter_code_fkey on stripe.report_positions is
  'goldleaves lint reference_without_organization: meters are the same for everybody, and no tenant writes it';

-- The outbox of usage: a meter event each, under an identifier that is made of what it is, so that it counts once however often it is sent.
create table stripe.meter_event_reports (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  meter_code text not null references metering.meters (code) on delete restrict,
  bucket_start timestamptz not null,
  sequence integer not null check (sequence > 0),
  quantity numeric not null check (quantity > 0 and scale(quantity) = 0),
  identifier text not null,
  customer_id text not null,
  event_name text not null,
  period_start timestamptz not null,
  -- When Stripe is told that it happened; set when it is first sent.
  happened_at timestamptz,
  -- acknowledged: Stripe has it; canceling, canceled: it is, or was, taken back; rejected: Stripe said what is wrong with it; uncertain: nobody
  -- knows whether Stripe has it, and it is too late to send it again.
  status text not null default 'pending'
    check (status in ('pending', 'acknowledged', 'canceling', 'canceled', 'rejected', 'uncertain')),
  -- Attempts that may have reached Stripe.
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default clock_timestamp(),
  -- Somebody is sending it until then.
  claimed_until timestamptz,
  first_sent_at timestamptz,
  acknowledged_at timestamptz,
  -- Stripe would not take it back any more.
  is_kept boolean not null default false,
  last_error text,
  -- What it tells of was recorded from this position on: while it is not acknowledged, nothing from there on is posted.
  generation integer not null,
  xid xid8 not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, meter_code, bucket_start, sequence),
  unique (identifier)
);
comment on constraint meter_event_reports_identifier_key on stripe.meter_event_reports is
  'goldleaves lint key_without_organization: it is made of a digest that begins with the organization, and no tenant writes it';
comment on constraint meter_event_reports_meter_code_fkey on stripe.meter_event_reports is
  'goldleaves lint reference_without_organization: meters are the same for everybody, and no tenant writes it';
create index meter_event_reports_meter on stripe.meter_event_reports (meter_code);
create index meter_event_reports_unsettled on stripe.meter_event_reports (organization_id, meter_code, status)
  where status in ('pending', 'canceling', 'rejected', 'uncertain');
create index meter_event_reports_of_period on stripe.meter_event_reports (organization_id, meter_code, period_start);
create index meter_event_reports_due on stripe.meter_event_reports (next_attempt_at) where status in ('pending', 'canceling');
comment on index stripe.meter_event_reports_due is
  'goldleaves lint key_without_organization: the sidecar reports usage of all organizations';
create index meter_event_reports_troubled on stripe.meter_event_reports (created_at) where status in ('rejected', 'uncertain');
comment on index stripe.meter_event_reports_troubled is
  'goldleaves lint key_without_organization: staff looks for what Stripe did not take';

-- The outbox of amounts: lines of statements where INVOICE_MODE is stripe_items, and credits for usage that Stripe can no longer take back.
create table stripe.invoice_items (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  kind text not null check (kind in ('line', 'credit')),
  invoice_id uuid,
  line_number integer,
  meter_code text references metering.meters (code) on delete restrict,
  -- Chosen when it is first sent, and the same when it is sent again: who is the organization's customer then, and its subscription.
  customer_id text,
  subscription_id text,
  amount_cents numeric not null check (scale(amount_cents) = 0 and amount_cents <> 0),
  currency text not null references billing.currencies (code) on delete restrict,
  description text not null,
  period_start timestamptz not null,
  period_end timestamptz not null,
  -- uncertain: nobody knows whether Stripe has it, and it is too late to send it again under its key; Stripe is asked whether it has it.
  status text not null default 'pending' check (status in ('pending', 'acknowledged', 'rejected', 'uncertain')),
  -- Those of which it is not known that they came to nothing.
  attempts integer not null default 0,
  -- How often it was sent anew, under another key, once it was certain that Stripe does not have it.
  rounds integer not null default 0,
  looked_for_at timestamptz,
  next_attempt_at timestamptz not null default clock_timestamp(),
  first_sent_at timestamptz,
  acknowledged_at timestamptz,
  stripe_id text,
  last_error text,
  created_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, id),
  -- A line of a statement is one item, for ever; a credit one of its period and meter.
  unique nulls not distinct (organization_id, kind, invoice_id, line_number, meter_code, period_start),
  foreign key (organization_id, invoice_id) references billing.invoices (organization_id, id) on delete restrict,
  check ((kind = 'line') = (invoice_id is not null and line_number is not null)),
  check ((kind = 'credit') = (meter_code is not null))
);
create index invoice_items_of_invoice on stripe.invoice_items (organization_id, invoice_id);
create index invoice_items_meter on stripe.invoice_items (meter_code);
create index invoice_items_currency on stripe.invoice_items (currency);
create index invoice_items_due on stripe.invoice_items (next_attempt_at) where status in ('pending', 'uncertain');
comment on index stripe.invoice_items_due is
  'goldleaves lint key_without_organization: the sidecar sends items of all organizations';
comment on constraint invoice_items_meter_code_fkey on stripe.invoice_items is
  'goldleaves lint reference_without_organization: meters are the same for everybody, and no tenant writes it';
comment on constraint invoice_items_currency_fkey on stripe.invoice_items is
  'goldleaves lint reference_without_organization: currencies are the same for everybody, and no tenant writes it';

-- Which billing periods were reconciled with Stripe, and when. Who is at one has claimed it for a while.
create table stripe.reconciled_periods (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  period_start timestamptz not null,
  checked_at timestamptz,
  claimed_until timestamptz not null default '-infinity',
  primary key (organization_id, period_start)
);

-- What the last reconciliation found of a period, a row a meter, line or item.
create table stripe.reconciliations (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  period_start timestamptz not null,
  -- usage: of a meter; invoice_line: of an invoice at Stripe, and which line; invoice_item: an amount that we have sent, under its id.
  kind text not null check (kind in ('usage', 'invoice_line', 'invoice_item')),
  subject text not null,
  ours numeric not null,
  -- Null: Stripe does not say.
  theirs numeric,
  -- What of the difference is as it should be: it waits to be sent, say, or was credited. The rest is drift.
  explained numeric not null default 0,
  drift numeric not null,
  cause text not null,
  -- When the provider's application was told of the drift.
  told_at timestamptz,
  checked_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, period_start, kind, subject)
);
create index reconciliations_drifting on stripe.reconciliations (organization_id) where drift <> 0;

-- Whose invoice counts: ours; or Stripe's, which is made of meter events, or of items for the lines of ours, which is then a statement.
alter table billing.defaults
  add column invoice_mode text not null default 'local' check (invoice_mode in ('local', 'stripe_meters', 'stripe_items'));
-- Null: INVOICE_MODE. It holds for periods that are made from then on, so that nothing in a period is billed twice.
alter table billing.billing_terms add column invoice_mode text check (invoice_mode in ('local', 'stripe_meters', 'stripe_items'));
alter table billing.billing_periods
  add column invoice_mode text not null default 'local' check (invoice_mode in ('local', 'stripe_meters', 'stripe_items'));
create index billing_periods_at_stripe on billing.billing_periods (period_end) where invoice_mode <> 'local';
comment on index billing.billing_periods_at_stripe is
  'goldleaves lint key_without_organization: the sidecar reconciles periods of all organizations';
alter table billing.invoices
  alter column number drop not null,
  add column kind text not null default 'invoice' check (kind in ('invoice', 'statement')),
  add check ((kind = 'statement') = (number is null));

-- Times whose usage is Stripe's to bill: below the mark there may also be usage that our own invoices bill, which Stripe was never told of.
alter table stripe.report_marks add column reported tstzmultirange not null default '{(,)}';

-- stripe: its phases follow from what Stripe says of it, and may be made anew as long as no period is finalized that they lie in.
alter table billing.subscriptions
  add column managed_by text not null default 'goldleaves' check (managed_by in ('goldleaves', 'stripe'));
-- Whether Stripe charges the fee of the plan: then an invoice of ours does not.
alter table billing.subscription_phases add column fee_by_stripe boolean not null default false;

-- Of an invoice of ours, or of one of Stripe's.
alter table billing.payments
  alter column invoice_id drop not null,
  add column stripe_invoice_id text,
  add foreign key (organization_id, stripe_invoice_id) references stripe.invoices (organization_id, id) on delete restrict,
  add check (num_nonnulls(invoice_id, stripe_invoice_id) = 1),
  add check (stripe_invoice_id is null or kind = 'payment');
create index payments_of_stripe_invoice on billing.payments (organization_id, stripe_invoice_id) where stripe_invoice_id is not null;

comment on table stripe.refetches is 'goldleaves lint shared_table_without_row_security: only the kernel reads it';
comment on table stripe.plan_prices is
  'goldleaves lint shared_table_without_row_security: the same for everybody, and no tenant reads or writes it';
comment on table stripe.meters is
  'goldleaves lint shared_table_without_row_security: the same for everybody, and no tenant reads or writes it';

-- The sidecar receives webhooks and sends usage.
grant usage on schema stripe to sidecar;
-- Monitoring sees what of it could not be applied.
grant usage on schema ops to monitor;

reset role;
