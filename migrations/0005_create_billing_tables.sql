-- Prices, periods and invoices. A period starts where the one before ends; exclusion constraints need an extension, so a
-- foreign key says it: previous_end equals period_start and points at the period that ends there.
set local role goldleaves_owner;

create table billing.prices (
  meter_code text not null references metering.meters (code) on delete restrict,
  currency text not null check (currency ~ '^[a-z]{3}$'),
  effective_from timestamptz not null,
  unit_amount_cents numeric not null check (unit_amount_cents >= 0),
  created_at timestamptz not null default now(),
  primary key (meter_code, currency, effective_from)
);

create table billing.billing_periods (
  organization_id uuid not null references tenancy.organizations (id) on delete restrict,
  period_start timestamptz not null,
  period_end timestamptz not null,
  previous_end timestamptz,
  timezone text not null,
  status text not null default 'open' check (status in ('open', 'finalized')),
  finalized_at timestamptz,
  created_at timestamptz not null default now(),
  primary key (organization_id, period_start),
  unique (organization_id, period_end),
  unique nulls not distinct (organization_id, previous_end),
  foreign key (organization_id, previous_end) references billing.billing_periods (organization_id, period_end)
    on delete restrict deferrable initially immediate,
  check (period_end > period_start),
  check (previous_end = period_start),
  check ((status = 'finalized') = (finalized_at is not null))
);

create table billing.invoices (
  organization_id uuid not null,
  id uuid not null default ops.new_id(),
  number text not null,
  period_start timestamptz not null,
  period_end timestamptz not null,
  payer_user_id uuid,
  billing_entity_type text not null generated always as (case when payer_user_id is null then 'organization' else 'user' end) stored,
  billing_entity_id uuid not null generated always as (coalesce(payer_user_id, organization_id)) stored,
  currency text not null,
  total_cents numeric not null,
  issued_at timestamptz not null default now(),
  primary key (organization_id, id),
  unique (organization_id, number),
  unique nulls not distinct (organization_id, period_start, payer_user_id),
  foreign key (organization_id, period_start) references billing.billing_periods (organization_id, period_start)
    on delete restrict
);

create table billing.invoice_lines (
  organization_id uuid not null,
  invoice_id uuid not null,
  line_number integer not null,
  meter_code text not null,
  description text not null,
  unit text not null,
  events bigint not null,
  quantity numeric not null,
  unit_amount_cents numeric not null,
  amount_cents numeric not null,
  primary key (organization_id, invoice_id, line_number),
  foreign key (organization_id, invoice_id) references billing.invoices (organization_id, id) on delete restrict
);

-- How far Stripe has acknowledged what was recorded: events below the position (generation, transaction id) are posted.
create table stripe.report_marks (
  organization_id uuid not null references tenancy.organizations (id) on delete restrict,
  meter_code text not null references metering.meters (code) on delete restrict,
  acknowledged_generation integer not null,
  acknowledged_xid xid8 not null,
  primary key (organization_id, meter_code)
);

create index report_marks_of_meter on stripe.report_marks (meter_code);

reset role;
