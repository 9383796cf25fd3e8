-- Periods and invoices, and what the provider's staff does to them.
create view api.billing_periods with (security_invoker) as
select
  organization_id,
  period_start,
  period_end,
  timezone,
  (period_start at time zone timezone)::date as start_date,
  (period_end at time zone timezone)::date as end_date,
  status,
  finalized_at
from billing.billing_periods;

comment on view api.billing_periods is 'Billing periods, half-open: period_start belongs to it, period_end to the next one.';
comment on column api.billing_periods.organization_id is 'Whose period it is.';
comment on column api.billing_periods.period_start is 'First moment of the period (UTC).';
comment on column api.billing_periods.period_end is 'First moment of the next period (UTC).';
comment on column api.billing_periods.timezone is 'IANA timezone in which the period begins and ends at midnight.';
comment on column api.billing_periods.finalized_at is 'When it was finalized (UTC); null while it is open.';
comment on column api.billing_periods.start_date is 'First day in the organization''s timezone: what usage_summary and finalize_period take. Never null.';
comment on column api.billing_periods.end_date is 'First day of the next period, in the organization''s timezone. Never null.';
comment on column api.billing_periods.status is 'open, or finalized: nothing in it can change again.';

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

grant select on api.billing_periods, api.invoices, api.invoice_lines to member, platform_admin;

create function api.finalize_period(period_start date)
returns api.invoices
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_invoice api.invoices;
begin
  perform tenancy.require_platform_admin();
  select i.id, i.organization_id, i.billing_entity_type, i.billing_entity_id, i.number, i.period_start, i.period_end, i.currency, i.total_cents, i.issued_at
  into v_invoice
  from billing.finalize_period(tenancy.current_org(), finalize_period.period_start) i;
  return v_invoice;
end;
$$;

comment on function api.finalize_period(date) is $$Close a billing period and issue its invoices

For platform_admin. period_start is the first day of the period, in the timezone of the organization that X-Organization-ID
names. Nothing in the period can change afterwards. The period in which a personal organization was converted gets two invoices, the
user's and the organization's; the answer is the one of who pays at the period's end. Called again, it returns the same one.

Errors: ROLE_REQUIRED (403), ORGANIZATION_REQUIRED, PERIOD_REQUIRED (400), ORGANIZATION_NOT_FOUND, PERIOD_NOT_FOUND (404),
PERIOD_NOT_ENDED (409), PERIOD_BUSY (503).$$;

create function api.recalculate_period(period_start date)
returns table (meter text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric)
language plpgsql
stable
set search_path = ''
as $$
begin
  perform tenancy.require_platform_admin();
  return query select * from billing.recalculate_period(tenancy.current_org(), recalculate_period.period_start);
end;
$$;

comment on function api.recalculate_period(date) is $$Rate an open period anew, a row a meter

For platform_admin. It stores nothing: it shows what closing the period now would bill. period_start is the first day of the
period, in the timezone of the organization that X-Organization-ID names.

- meter: Code of the meter; the name of the event when no meter counts it. Never null.
- unit: What quantity is in; null when no meter counts the event.
- events: How many events there are. Never null.
- quantity: In unit: the number of events or the sum of their quantities, as the meter says. Never null.
- unit_amount_cents: Price of one unit, in minor units of the organization's currency, perhaps a fraction; null when it is not billed.
- amount_cents: quantity times unit_amount_cents, rounded once a payer, half away from zero, to whole minor units; 0 when it is not billed. Never null.

Errors: ROLE_REQUIRED (403), ORGANIZATION_REQUIRED (400), ORGANIZATION_NOT_FOUND, PERIOD_NOT_FOUND (404),
BILLING_PERIOD_LOCKED (409) when the period is finalized.$$;

grant execute on function api.finalize_period(date), api.recalculate_period(date)
  to member, service, platform_admin;
