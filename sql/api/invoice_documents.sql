-- Invoices and previews as documents. The gateway serves the same at /api/billing, as JSON, CSV and as a page to print.
create function api.preview_invoice(period_start date default null, billing_entity_type text default null)
returns jsonb
language sql
stable
set search_path = ''
as $$ select billing.preview_invoice(preview_invoice.period_start, preview_invoice.billing_entity_type) $$;

comment on function api.preview_invoice(date, text) is $$Preview the invoice of an open period

For owners, admins and billing users, and platform_admin. What the invoice would be if nothing more came: live, and it changes nothing.
Its status is draft, its kind invoice or, where Stripe's invoice counts, statement; number, id, due date and digest are null. Without period_start the current period. billing_entity_type is user or
organization, for the period in which a personal organization was converted; without it, who pays when the period ends. All
`_cents` are in whole minor units of currency, but for unit prices and exact_cents, which may be fractions.

Errors: ROLE_REQUIRED, SCOPE_REQUIRED (403), ORGANIZATION_REQUIRED (400), ORGANIZATION_NOT_FOUND, PERIOD_NOT_FOUND,
BILLING_ENTITY_NOT_FOUND (404), BILLING_PERIOD_LOCKED (409) when it was issued: the hint names the invoice.$$;

create function api.invoice_document(invoice_id text)
returns jsonb
language sql
stable
set search_path = ''
as $$ select billing.invoice_document(invoice_document.invoice_id) $$;

comment on function api.invoice_document(text) is $$Read an invoice with all that is on it

For owners, admins and billing users, and platform_admin. Lines with groups, prices and how tiers add up, adjustments with the
period they belong to, tax, totals, payments and credit notes. issuer and billed_to are as they were when it was issued. status
is open, paid, void or uncollectible; statement, with kind statement, where Stripe's invoice counts. All `_cents` are in whole minor units of currency, but for unit prices and exact_cents, which
may be fractions.

Errors: ROLE_REQUIRED, SCOPE_REQUIRED (403), ORGANIZATION_REQUIRED (400), ORGANIZATION_NOT_FOUND, INVOICE_NOT_FOUND (404).$$;

grant execute on function api.preview_invoice(date, text), api.invoice_document(text) to member, platform_admin;
