-- The catalog (currencies, plans, prices in five models), what invoices keep so that they prove themselves, and the ledgers beside them:
-- payments, refunds, credit notes and the balance that is carried forward.
set local role goldleaves_owner;

-- ISO 4217. Amounts are in minor units: 100 are one usd, and 100 jpy.
create table billing.currencies (
  code text primary key check (code ~ '^[a-z]{3}$'),
  minor_units smallint not null check (minor_units between 0 and 4),
  name text not null
);
insert into billing.currencies (code, minor_units, name) values
  ('aed', 2, 'United Arab Emirates dirham'), ('afn', 2, 'Afghan afghani'), ('all', 2, 'Albanian lek'), ('amd', 2, 'Armenian dram'),
  ('ang', 2, 'Netherlands Antillean guilder'), ('aoa', 2, 'Angolan kwanza'), ('ars', 2, 'Argentine peso'),
  ('aud', 2, 'Australian dollar'), ('awg', 2, 'Aruban florin'), ('azn', 2, 'Azerbaijani manat'), ('bam', 2, 'Convertible mark'),
  ('bbd', 2, 'Barbados dollar'), ('bdt', 2, 'Bangladeshi taka'), ('bgn', 2, 'Bulgarian lev'), ('bhd', 3, 'Bahraini dinar'),
  ('bif', 0, 'Burundian franc'), ('bmd', 2, 'Bermudian dollar'), ('bnd', 2, 'Brunei dollar'), ('bob', 2, 'Boliviano'),
  ('brl', 2, 'Brazilian real'), ('bsd', 2, 'Bahamian dollar'), ('btn', 2, 'Bhutanese ngultrum'), ('bwp', 2, 'Botswana pula'),
  ('byn', 2, 'Belarusian ruble'), ('bzd', 2, 'Belize dollar'), ('cad', 2, 'Canadian dollar'), ('cdf', 2, 'Congolese franc'),
  ('chf', 2, 'Swiss franc'), ('clf', 4, 'Unidad de fomento'), ('clp', 0, 'Chilean peso'), ('cny', 2, 'Renminbi'),
  ('cop', 2, 'Colombian peso'), ('crc', 2, 'Costa Rican colon'), ('cup', 2, 'Cuban peso'), ('cve', 2, 'Cape Verdean escudo'),
  ('czk', 2, 'Czech koruna'), ('djf', 0, 'Djiboutian franc'), ('dkk', 2, 'Danish krone'), ('dop', 2, 'Dominican peso'),
  ('dzd', 2, 'Algerian dinar'), ('egp', 2, 'Egyptian pound'), ('ern', 2, 'Eritrean nakfa'), ('etb', 2, 'Ethiopian birr'),
  ('eur', 2, 'Euro'), ('fjd', 2, 'Fiji dollar'), ('fkp', 2, 'Falkland Islands pound'), ('gbp', 2, 'Pound sterling'),
  ('gel', 2, 'Georgian lari'), ('ghs', 2, 'Ghanaian cedi'), ('gip', 2, 'Gibraltar pound'), ('gmd', 2, 'Gambian dalasi'),
  ('gnf', 0, 'Guinean franc'), ('gtq', 2, 'Guatemalan quetzal'), ('gyd', 2, 'Guyanese dollar'), ('hkd', 2, 'Hong Kong dollar'),
  ('hnl', 2, 'Honduran lempira'), ('htg', 2, 'Haitian gourde'), ('huf', 2, 'Hungarian forint'), ('idr', 2, 'Indonesian rupiah'),
  ('ils', 2, 'Israeli new shekel'), ('inr', 2, 'Indian rupee'), ('iqd', 3, 'Iraqi dinar'), ('irr', 2, 'Iranian rial'),
  ('isk', 0, 'Icelandic króna'), ('jmd', 2, 'Jamaican dollar'), ('jod', 3, 'Jordanian dinar'), ('jpy', 0, 'Japanese yen'),
  ('kes', 2, 'Kenyan shilling'), ('kgs', 2, 'Kyrgyzstani som'), ('khr', 2, 'Cambodian riel'), ('kmf', 0, 'Comoro franc'),
  ('kpw', 2, 'North Korean won'), ('krw', 0, 'South Korean won'), ('kwd', 3, 'Kuwaiti dinar'), ('kyd', 2, 'Cayman Islands dollar'),
  ('kzt', 2, 'Kazakhstani tenge'), ('lak', 2, 'Lao kip'), ('lbp', 2, 'Lebanese pound'), ('lkr', 2, 'Sri Lankan rupee'),
  ('lrd', 2, 'Liberian dollar'), ('lsl', 2, 'Lesotho loti'), ('lyd', 3, 'Libyan dinar'), ('mad', 2, 'Moroccan dirham'),
  ('mdl', 2, 'Moldovan leu'), ('mga', 2, 'Malagasy ariary'), ('mkd', 2, 'Macedonian denar'), ('mmk', 2, 'Myanmar kyat'),
  ('mnt', 2, 'Mongolian tögrög'), ('mop', 2, 'Macanese pataca'), ('mru', 2, 'Mauritanian ouguiya'), ('mur', 2, 'Mauritian rupee'),
  ('mvr', 2, 'Maldivian rufiyaa'), ('mwk', 2, 'Malawian kwacha'), ('mxn', 2, 'Mexican peso'), ('myr', 2, 'Malaysian ringgit'),
  ('mzn', 2, 'Mozambican metical'), ('nad', 2, 'Namibian dollar'), ('ngn', 2, 'Nigerian naira'), ('nio', 2, 'Nicaraguan córdoba'),
  ('nok', 2, 'Norwegian krone'), ('npr', 2, 'Nepalese rupee'), ('nzd', 2, 'New Zealand dollar'), ('omr', 3, 'Omani rial'),
  ('pab', 2, 'Panamanian balboa'), ('pen', 2, 'Peruvian sol'), ('pgk', 2, 'Papua New Guinean kina'), ('php', 2, 'Philippine peso'),
  ('pkr', 2, 'Pakistani rupee'), ('pln', 2, 'Polish złoty'), ('pyg', 0, 'Paraguayan guaraní'), ('qar', 2, 'Qatari riyal'),
  ('ron', 2, 'Romanian leu'), ('rsd', 2, 'Serbian dinar'), ('rub', 2, 'Russian ruble'), ('rwf', 0, 'Rwandan franc'),
  ('sar', 2, 'Saudi riyal'), ('sbd', 2, 'Solomon Islands dollar'), ('scr', 2, 'Seychelles rupee'), ('sdg', 2, 'Sudanese pound'),
  ('sek', 2, 'Swedish krona'), ('sgd', 2, 'Singapore dollar'), ('shp', 2, 'Saint Helena pound'), ('sle', 2, 'Sierra Leonean leone'),
  ('sos', 2, 'Somali shilling'), ('srd', 2, 'Surinamese dollar'), ('ssp', 2, 'South Sudanese pound'),
  ('stn', 2, 'São Tomé and Príncipe dobra'), ('svc', 2, 'Salvadoran colón'), ('syp', 2, 'Syrian pound'), ('szl', 2, 'Swazi lilangeni'),
  ('thb', 2, 'Thai baht'), ('tjs', 2, 'Tajikistani somoni'), ('tmt', 2, 'Turkmenistan manat'), ('tnd', 3, 'Tunisian dinar'),
  ('top', 2, 'Tongan paʻanga'), ('try', 2, 'Turkish lira'), ('ttd', 2, 'Trinidad and Tobago dollar'), ('twd', 2, 'New Taiwan dollar'),
  ('tzs', 2, 'Tanzanian shilling'), ('uah', 2, 'Ukrainian hryvnia'), ('ugx', 0, 'Ugandan shilling'), ('usd', 2, 'United States dollar'),
  ('uyu', 2, 'Uruguayan peso'), ('uzs', 2, 'Uzbekistan sum'), ('ves', 2, 'Venezuelan bolívar'), ('vnd', 0, 'Vietnamese đồng'),
  ('vuv', 0, 'Vanuatu vatu'), ('wst', 2, 'Samoan tala'), ('xaf', 0, 'CFA franc BEAC'), ('xcd', 2, 'East Caribbean dollar'),
  ('xof', 0, 'CFA franc BCEAO'), ('xpf', 0, 'CFP franc'), ('yer', 2, 'Yemeni rial'), ('zar', 2, 'South African rand'),
  ('zmw', 2, 'Zambian kwacha');

create table billing.plans (
  code text primary key check (length(code) between 1 and 64),
  name text not null check (length(btrim(name)) between 1 and 200),
  description text not null default '' check (length(description) <= 1000),
  -- Whether everybody may see it. A plan that was agreed with one customer is not.
  is_public boolean not null default true,
  position integer not null default 0,
  created_at timestamptz not null default now()
);
insert into billing.plans (code, name, description, position) values
  ('starter', 'Starter', 'For one person who begins.', 1),
  ('pro', 'Pro', 'For teams.', 2),
  ('firm', 'Firm', 'For whole firms.', 3);

create table billing.plan_features (
  plan_code text not null references billing.plans (code) on delete restrict,
  feature text not null check (feature ~ '^[a-z0-9_.]{1,64}$'),
  -- boolean: there or not; limit_per_period: so much in each billing period; limit: so much at any time.
  kind text not null check (kind in ('boolean', 'limit_per_period', 'limit')),
  -- Null: without a limit.
  limit_value numeric check (limit_value >= 0),
  description text not null default '' check (length(description) <= 200),
  primary key (plan_code, feature),
  check (kind <> 'boolean' or limit_value is null)
);
insert into billing.plan_features (plan_code, feature, kind, limit_value, description) values
  ('starter', 'members', 'limit', 3, 'Members'),
  ('pro', 'members', 'limit', 25, 'Members'),
  ('firm', 'members', 'limit', null, 'Members'),
  ('pro', 'audit_log', 'boolean', null, 'Audit log'),
  ('firm', 'audit_log', 'boolean', null, 'Audit log'),
  ('firm', 'priority_support', 'boolean', null, 'Priority support');

-- Row security holds for the owner too, once the policies are there.
alter table tenancy.organizations no force row level security;
insert into billing.plans (code, name, is_public, position)
select distinct o.plan, o.plan, false, 100 from tenancy.organizations o on conflict do nothing;
insert into billing.currencies (code, minor_units, name)
select distinct c.code, 2, upper(c.code)
from (select currency from tenancy.organizations union select currency from billing.prices) as c (code)
on conflict do nothing;
alter table tenancy.organizations
  add foreign key (plan) references billing.plans (code) on delete restrict,
  add foreign key (currency) references billing.currencies (code) on delete restrict;
alter table tenancy.organizations force row level security;
create index organizations_plan on tenancy.organizations (plan);
create index organizations_currency on tenancy.organizations (currency);

-- What a meter costs: for everybody, or in one plan; for all its usage, or for one value of one dimension. A price without a meter is the
-- fee of a plan. A price never changes: another one takes its place from effective_from on, for the periods that begin then.
alter table billing.prices
  drop constraint prices_pkey,
  alter column meter_code drop not null,
  alter column unit_amount_cents drop not null,
  alter column created_at set default clock_timestamp(),
  add column id uuid not null default ops.new_id(),
  add column plan_code text references billing.plans (code) on delete restrict,
  add column dimension text check (dimension ~ '^[A-Za-z0-9_.:-]{1,64}$'),
  add column dimension_value text check (length(dimension_value) between 1 and 200),
  -- none: no price of its own any more, from effective_from on.
  add column model text not null default 'per_unit' check (model in ('flat', 'per_unit', 'package', 'graduated', 'volume', 'none')),
  add column package_size numeric check (package_size > 0),
  -- [{"up_to": 100, "unit_amount_cents": 2, "flat_amount_cents": 0}, …, {"up_to": null, …}]
  add column tiers jsonb,
  add column included_quantity numeric not null default 0 check (included_quantity >= 0),
  add column minimum_cents numeric check (minimum_cents >= 0),
  add column maximum_cents numeric check (maximum_cents >= 0),
  add primary key (id),
  add foreign key (currency) references billing.currencies (code) on delete restrict,
  -- One that is still to come is put right by another one from the same moment on: the last one made counts.
  add unique nulls not distinct (meter_code, plan_code, currency, dimension, dimension_value, effective_from, created_at),
  add check (meter_code is not null or plan_code is not null and model in ('flat', 'none') and dimension is null and included_quantity = 0),
  add check ((dimension is null) = (dimension_value is null)),
  add check ((model in ('flat', 'per_unit', 'package')) = (unit_amount_cents is not null)),
  add check ((model = 'package') = (package_size is not null)),
  add check ((model in ('graduated', 'volume')) = (tiers is not null)),
  add check (minimum_cents <= maximum_cents);
create index prices_of_plan on billing.prices (plan_code);
create index prices_of_currency on billing.prices (currency);

-- Whom invoices are made out to: the person, for what was used in a personal organization, and the organization. That of the
-- platform's own organization is who issues them.
create table billing.billing_profiles (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  billing_entity_type text not null check (billing_entity_type in ('user', 'organization')),
  legal_name text check (length(btrim(legal_name)) between 1 and 200),
  -- As it is printed: lines.
  address text check (length(address) <= 1000),
  country text check (country ~ '^[A-Z]{2}$'),
  email text check (length(email) between 3 and 254),
  tax_id text check (length(btrim(tax_id)) between 1 and 64),
  updated_at timestamptz not null default now(),
  primary key (organization_id, billing_entity_type)
);

-- What the provider agreed with an organization; without a row, the defaults.
create table billing.billing_terms (
  organization_id uuid primary key references tenancy.organizations (id) on delete cascade,
  tax_name text not null default 'Tax' check (length(btrim(tax_name)) between 1 and 64),
  tax_percent numeric not null default 0 check (tax_percent >= 0 and tax_percent <= 100 and scale(tax_percent) <= 6),
  -- Whether prices contain the tax.
  tax_inclusive boolean not null default false,
  payment_days integer not null default 14 check (payment_days between 0 and 365),
  updated_at timestamptz not null default now()
);

alter table billing.billing_periods
  drop constraint billing_periods_status_check,
  -- closing: it has ended, and what is late is waited for.
  add constraint billing_periods_status_check check (status in ('open', 'closing', 'finalized'));
create index billing_periods_not_finalized on billing.billing_periods (period_end) where status <> 'finalized';
comment on index billing.billing_periods_not_finalized is
  'goldleaves lint key_without_organization: the scheduler looks for periods of all organizations';

-- Null in those that are older than this.
alter table billing.invoices
  add column timezone text,
  add column plan_code text,
  add column billing_profile jsonb,
  add column issuer jsonb,
  add column subtotal_cents numeric,
  add column tax_name text,
  add column tax_percent numeric,
  add column tax_inclusive boolean,
  -- Of an inclusive tax what the total contains, of another one what was added to subtotal_cents.
  add column tax_cents numeric,
  -- What of an earlier balance was taken off, at most the total; what is left to pay.
  add column balance_applied_cents numeric,
  add column amount_due_cents numeric,
  add column due_at timestamptz,
  -- Prices that were made later do not count.
  add column rated_at timestamptz,
  -- What the digest is made of besides the rows: events, weights, versions of meters, attribution.
  add column facts jsonb,
  add column digest text,
  add column issued_generation integer,
  add column issued_xid xid8;

alter table billing.invoice_lines
  alter column meter_code drop not null,
  alter column unit drop not null,
  alter column unit_amount_cents drop not null,
  add column kind text not null default 'usage' check (kind in ('usage', 'fee', 'adjustment', 'tax')),
  add column groups jsonb not null default '{}',
  -- The price as it was, and how the amount came about: [{"from", "to", "quantity", "unit_amount_cents", "amount_cents"}, …].
  add column price jsonb,
  add column tiers jsonb,
  -- Beginning of the finalized period that an adjustment belongs to.
  add column belongs_to timestamptz,
  -- Before it was rounded.
  add column exact_cents numeric,
  -- What the quantity is made of, before it was divided by the size of a unit: late usage is added to this, which is exact.
  add column value numeric;

create table billing.payments (
  organization_id uuid not null,
  id uuid not null default ops.new_id(),
  invoice_id uuid not null,
  -- write_off: nobody will pay it, the invoice is uncollectible.
  kind text not null default 'payment' check (kind in ('payment', 'write_off')),
  amount_cents numeric not null check (amount_cents > 0 and scale(amount_cents) = 0),
  method text not null check (length(btrim(method)) between 1 and 64),
  -- The payment's name elsewhere, as a bank or Stripe gave it: it counts once.
  reference text not null check (length(btrim(reference)) between 1 and 255),
  -- Why it was written off.
  reason text check (length(btrim(reason)) between 1 and 1000),
  paid_at timestamptz not null default now(),
  recorded_by text not null,
  recorded_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, id),
  unique (organization_id, kind, reference),
  check ((kind = 'write_off') = (reason is not null)),
  foreign key (organization_id, invoice_id) references billing.invoices (organization_id, id) on delete restrict
);
create index payments_of_invoice on billing.payments (organization_id, invoice_id);

create table billing.credit_notes (
  organization_id uuid not null,
  id uuid not null default ops.new_id(),
  number text not null,
  invoice_id uuid not null,
  payer_user_id uuid,
  billing_entity_type text not null generated always as (case when payer_user_id is null then 'organization' else 'user' end) stored,
  billing_entity_id uuid not null generated always as (coalesce(payer_user_id, organization_id)) stored,
  currency text not null references billing.currencies (code) on delete restrict,
  reason text not null check (length(btrim(reason)) between 1 and 1000),
  issued_by text not null,
  -- A retry names the same one, and makes no second note.
  reference text not null check (length(btrim(reference)) between 1 and 255),
  subtotal_cents numeric not null,
  tax_cents numeric not null,
  total_cents numeric not null check (total_cents > 0),
  -- What the invoice had no more to pay: it goes to the balance.
  to_balance_cents numeric not null check (to_balance_cents >= 0 and to_balance_cents <= total_cents),
  issued_at timestamptz not null default now(),
  primary key (organization_id, id),
  unique (organization_id, number),
  unique (organization_id, reference),
  foreign key (organization_id, invoice_id) references billing.invoices (organization_id, id) on delete restrict
);
create index credit_notes_of_invoice on billing.credit_notes (organization_id, invoice_id);
create index credit_notes_currency on billing.credit_notes (currency);

create table billing.credit_note_lines (
  organization_id uuid not null,
  credit_note_id uuid not null,
  line_number integer not null,
  invoice_id uuid not null,
  invoice_line_number integer not null,
  description text not null,
  amount_cents numeric not null check (amount_cents > 0 and scale(amount_cents) = 0),
  primary key (organization_id, credit_note_id, line_number),
  foreign key (organization_id, credit_note_id) references billing.credit_notes (organization_id, id) on delete restrict,
  foreign key (organization_id, invoice_id, invoice_line_number)
    references billing.invoice_lines (organization_id, invoice_id, line_number) on delete restrict
);
create index credit_note_lines_of_line on billing.credit_note_lines (organization_id, invoice_id, invoice_line_number);

create table billing.refunds (
  organization_id uuid not null,
  id uuid not null default ops.new_id(),
  payment_id uuid not null,
  -- Money back for a credit note comes out of the balance; without one the invoice is to be paid again.
  credit_note_id uuid,
  amount_cents numeric not null check (amount_cents > 0 and scale(amount_cents) = 0),
  reference text not null check (length(btrim(reference)) between 1 and 255),
  refunded_at timestamptz not null default now(),
  recorded_by text not null,
  recorded_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, id),
  unique (organization_id, reference),
  foreign key (organization_id, payment_id) references billing.payments (organization_id, id) on delete restrict,
  foreign key (organization_id, credit_note_id) references billing.credit_notes (organization_id, id) on delete restrict
);
create index refunds_of_payment on billing.refunds (organization_id, payment_id);
create index refunds_of_credit_note on billing.refunds (organization_id, credit_note_id);

-- What is to be taken off the next invoices of a payer, as a ledger: its sum is the balance, and never below zero.
create table billing.balance_entries (
  organization_id uuid not null,
  id uuid not null default ops.new_id(),
  payer_user_id uuid,
  billing_entity_type text not null generated always as (case when payer_user_id is null then 'organization' else 'user' end) stored,
  billing_entity_id uuid not null generated always as (coalesce(payer_user_id, organization_id)) stored,
  currency text not null references billing.currencies (code) on delete restrict,
  -- negative_invoice and credit_note fill it; applied (to an invoice) and refund empty it.
  kind text not null check (kind in ('negative_invoice', 'credit_note', 'applied', 'refund')),
  amount_cents numeric not null check (scale(amount_cents) = 0),
  invoice_id uuid,
  credit_note_id uuid,
  refund_id uuid,
  recorded_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, id),
  check (case when kind in ('negative_invoice', 'credit_note') then amount_cents > 0 else amount_cents < 0 end),
  check (num_nonnulls(invoice_id, credit_note_id, refund_id) = 1),
  check (case kind when 'credit_note' then credit_note_id when 'refund' then refund_id else invoice_id end is not null),
  unique nulls not distinct (organization_id, kind, invoice_id, credit_note_id, refund_id),
  foreign key (organization_id, invoice_id) references billing.invoices (organization_id, id) on delete restrict,
  foreign key (organization_id, credit_note_id) references billing.credit_notes (organization_id, id) on delete restrict,
  foreign key (organization_id, refund_id) references billing.refunds (organization_id, id) on delete restrict
);
create index balance_entries_currency on billing.balance_entries (currency);
create index balance_entries_of_invoice on billing.balance_entries (organization_id, invoice_id);
create index balance_entries_of_credit_note on billing.balance_entries (organization_id, credit_note_id);
create index balance_entries_of_refund on billing.balance_entries (organization_id, refund_id);

-- A charge on its way from rating to an invoice: see billing.rate_period().
create type billing.rated_charge as (
  payer_user_id uuid,
  kind text,
  meter_code text,
  groups jsonb,
  description text,
  unit text,
  events bigint,
  quantity numeric,
  terms jsonb,
  tiers jsonb,
  belongs_to timestamptz,
  exact_cents numeric,
  amount_cents numeric,
  value numeric
);

-- The sum of the digests of the events that a row counts; null: not known, it counts events that were rolled up before this.
alter table metering.usage_rollups add column digest numeric;

comment on table billing.currencies is
  'goldleaves lint shared_table_without_row_security: currencies are the same for everybody, and no tenant writes them';
comment on table billing.prices is
  'goldleaves lint shared_table_without_row_security: prices are the same for everybody; only staff and the kernel read it';
comment on table billing.plans is
  'goldleaves lint shared_table_without_row_security: only the kernel reads it, and shows tenants what is public';
comment on table billing.plan_features is
  'goldleaves lint shared_table_without_row_security: only the kernel reads it, and shows tenants what is public';

comment on constraint organizations_currency_fkey on tenancy.organizations is
  'goldleaves lint reference_without_organization: currencies are the same for everybody, and no tenant writes it';
comment on constraint credit_notes_currency_fkey on billing.credit_notes is
  'goldleaves lint reference_without_organization: currencies are the same for everybody, and no tenant writes it';
comment on constraint balance_entries_currency_fkey on billing.balance_entries is
  'goldleaves lint reference_without_organization: currencies are the same for everybody, and no tenant writes it';
comment on constraint organizations_plan_fkey on tenancy.organizations is
  'goldleaves lint reference_without_organization: plans are the same for everybody, and no tenant writes it';

-- It closes periods.
grant usage on schema billing to sidecar;

reset role;
