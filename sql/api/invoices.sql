-- Invoices and their lines.
create view api.invoices with (security_invoker) as
select
  i.id,
  i.organization_id,
  i.billing_entity_type,
  i.billing_entity_id,
  i.number,
  i.period_start,
  i.period_end,
  i.currency,
  i.total_cents,
  i.issued_at,
  case i.kind when 'statement' then i.kind else s.status end as status,
  coalesce(i.subtotal_cents, i.total_cents) as subtotal_cents,
  i.tax_name,
  coalesce(i.tax_percent, 0) as tax_percent,
  coalesce(i.tax_inclusive, false) as tax_inclusive,
  coalesce(i.tax_cents, 0) as tax_cents,
  coalesce(i.balance_applied_cents, 0) as balance_applied_cents,
  coalesce(i.amount_due_cents, greatest(i.total_cents, 0)) as amount_due_cents,
  s.paid_cents,
  s.credited_cents,
  s.written_off_cents,
  s.remaining_cents,
  i.due_at,
  i.timezone,
  i.plan_code as plan,
  i.billing_profile,
  i.issuer,
  i.digest,
  i.kind
from billing.invoices i
cross join lateral billing.settlement(i.organization_id, i.id, i.total_cents, i.amount_due_cents) s;

create trigger refuse_write instead of insert or update or delete on api.invoices
  for each row execute function billing.refuse_write();

comment on view api.invoices is 'One invoice a finalized period and payer: two for the period in which a personal organization was converted. '
  'total_cents is the sum of its lines. Where Stripe''s invoice counts it is a statement, which nobody pays: see stripe_invoices.';
comment on column api.invoices.id is 'What invoice_lines.invoice_id points at.';
comment on column api.invoices.organization_id is 'Whose usage it is for.';
comment on column api.invoices.billing_entity_type is 'Who pays: user, what was used in a personal organization; organization from its '
  'conversion on, and always in others.';
comment on column api.invoices.billing_entity_id is 'Who pays: the id of the user or of the organization.';
comment on column api.invoices.period_start is 'First moment of the period (UTC).';
comment on column api.invoices.period_end is 'First moment after the period (UTC).';
comment on column api.invoices.currency is 'ISO 4217, lowercase, such as usd.';
comment on column api.invoices.issued_at is 'When the period was finalized (UTC).';
comment on column api.invoices.number is 'Year and a count without gaps in the organization and year, such as 2026-0001. Null: a statement '
  'has none.';
comment on column api.invoices.total_cents is 'In whole minor units of currency: 30100 is 301.00 usd.';
comment on column api.invoices.status is 'open; paid: nothing is left to pay; void: all of it was credited, and nothing paid; uncollectible: the '
  'rest is written off; statement: Stripe''s invoice counts. Never null.';
comment on column api.invoices.subtotal_cents is 'The lines without the tax line. Never null.';
comment on column api.invoices.tax_name is 'What the tax is called; null in invoices older than this.';
comment on column api.invoices.tax_percent is 'The rate of the tax, 0 without one. Never null.';
comment on column api.invoices.tax_inclusive is 'Whether the prices contain the tax. Never null.';
comment on column api.invoices.tax_cents is 'The tax: of an inclusive one what the total contains, of another one what was added to '
  'subtotal_cents. Never null.';
comment on column api.invoices.balance_applied_cents is 'What of an earlier balance was taken off. Never null.';
comment on column api.invoices.amount_due_cents is 'What was to be paid when it was issued: the total less balance_applied_cents, and 0 where '
  'the total is below that, and in statements. Never null.';
comment on column api.invoices.paid_cents is 'What was paid, less what was paid back without a credit note. Never null.';
comment on column api.invoices.credited_cents is 'What credit notes took off, also what of that went to the balance. Never null.';
comment on column api.invoices.written_off_cents is 'What is owed, and no more asked for. Never null.';
comment on column api.invoices.remaining_cents is 'What is left to pay. Never null.';
comment on column api.invoices.due_at is 'By when it is to be paid (UTC); null in statements, and in invoices older than this.';
comment on column api.invoices.timezone is 'IANA timezone of the period; null in invoices older than this.';
comment on column api.invoices.plan is 'Code of the plan whose prices counted; null in invoices older than this.';
comment on column api.invoices.billing_profile is 'Whom it is made out to, as it was: legal_name, address, country, email, tax_id, as far as '
  'they were known.';
comment on column api.invoices.issuer is 'Who issued it, as it was: the same fields.';
comment on column api.invoices.digest is 'SHA-256 of what is written on it and of what it rests on; null in invoices older than this.';
comment on column api.invoices.kind is 'invoice; statement: the same lines, of a period for which Stripe''s invoice counts.';

create view api.invoice_lines with (security_invoker) as
select
  invoice_id,
  organization_id,
  line_number,
  meter_code as meter,
  description,
  unit,
  events,
  quantity,
  unit_amount_cents,
  amount_cents,
  kind,
  groups,
  price,
  tiers,
  belongs_to,
  exact_cents
from billing.invoice_lines;

comment on view api.invoice_lines is 'Lines of invoices: fees, one a meter and group of usage, what earlier periods are adjusted by, and the tax.';

comment on column api.invoice_lines.invoice_id is 'The invoice.';
comment on column api.invoice_lines.organization_id is 'Whose usage it is for.';
comment on column api.invoice_lines.line_number is 'From 1, within the invoice.';
comment on column api.invoice_lines.meter is 'Code of the meter; null in lines that no meter makes.';
comment on column api.invoice_lines.description is 'What the meter counts, or what the fee or tax is called.';
comment on column api.invoice_lines.unit is 'What quantity is in; null in lines that no meter makes.';
comment on column api.invoice_lines.events is 'How many events make the quantity.';
comment on column api.invoice_lines.quantity is 'In unit: the number of events or the sum of their quantities, as the meter says.';
comment on column api.invoice_lines.unit_amount_cents is 'Price of one unit, in minor units of the invoice''s currency; may be a fraction. Null '
  'where units have no one price: see tiers.';
comment on column api.invoice_lines.amount_cents is 'In whole minor units of the invoice''s currency, rounded once, half away from zero.';
comment on column api.invoice_lines.kind is 'fee, usage, adjustment (of a period that was finalized before) or tax.';
comment on column api.invoice_lines.groups is 'Values of the dimensions that the price is for; {} where it is for all that have none of their own.';
comment on column api.invoice_lines.price is 'The price as it was: model, unit_amount_cents, package_size, tiers, included_quantity, '
  'minimum_cents, maximum_cents, as far as it has them; by_stripe: true, for a fee that Stripe charges.';
comment on column api.invoice_lines.tiers is 'How the amount came about, an object a tier; null where one price holds for all units.';
comment on column api.invoice_lines.belongs_to is 'Beginning of the finalized period that an adjustment belongs to (UTC); null in other lines.';
comment on column api.invoice_lines.exact_cents is 'The amount before it was rounded; null in invoices older than this.';

grant select on api.invoices, api.invoice_lines to member, platform_admin;
