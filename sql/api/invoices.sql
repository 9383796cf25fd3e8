-- Invoices and their lines.
create view api.invoices with (security_invoker) as
select id, organization_id, billing_entity_type, billing_entity_id, number, period_start, period_end, currency, total_cents, issued_at
from billing.invoices;

comment on view api.invoices is 'One invoice a finalized period and payer: two for the period in which a personal organization was converted. total_cents is the sum of its lines.';
comment on column api.invoices.id is 'What invoice_lines.invoice_id points at.';
comment on column api.invoices.organization_id is 'Whose usage it is for.';
comment on column api.invoices.billing_entity_type is 'Who pays: user, what was used in a personal organization; organization from its conversion on, and always in others.';
comment on column api.invoices.billing_entity_id is 'Who pays: the id of the user or of the organization.';
comment on column api.invoices.period_start is 'First moment of the period (UTC).';
comment on column api.invoices.period_end is 'First moment after the period (UTC).';
comment on column api.invoices.currency is 'ISO 4217, lowercase, such as usd.';
comment on column api.invoices.issued_at is 'When the period was finalized (UTC).';
comment on column api.invoices.number is 'Year and a count without gaps in the organization and year, such as 2026-0001.';
comment on column api.invoices.total_cents is 'In whole minor units of currency: 30100 is 301.00 usd.';

create view api.invoice_lines with (security_invoker) as
select invoice_id, organization_id, line_number, meter_code as meter, description, unit, events, quantity, unit_amount_cents, amount_cents
from billing.invoice_lines;

comment on view api.invoice_lines is 'Lines of invoices, one a meter.';

comment on column api.invoice_lines.invoice_id is 'The invoice.';
comment on column api.invoice_lines.organization_id is 'Whose usage it is for.';
comment on column api.invoice_lines.line_number is 'From 1, within the invoice.';
comment on column api.invoice_lines.meter is 'Code of the meter.';
comment on column api.invoice_lines.description is 'What the meter counts.';
comment on column api.invoice_lines.unit is 'What quantity is in.';
comment on column api.invoice_lines.events is 'How many events make the quantity.';
comment on column api.invoice_lines.quantity is 'In unit: the number of events or the sum of their quantities, as the meter says.';
comment on column api.invoice_lines.unit_amount_cents is 'Price of one unit, in minor units of the invoice''s currency; may be a fraction.';
comment on column api.invoice_lines.amount_cents is 'quantity times unit_amount_cents in whole minor units of the invoice''s currency, rounded once, half away from zero.';

grant select on api.invoices, api.invoice_lines to member, platform_admin;
