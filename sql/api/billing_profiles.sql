-- Whom invoices are made out to, and on which terms.
create view api.billing_profiles with (security_invoker) as
select organization_id, billing_entity_type, legal_name, address, country, email, tax_id, updated_at
from billing.billing_profiles;

comment on view api.billing_profiles is 'Whom invoices are made out to. set_billing_profile writes it; issued invoices keep the one they had.';
comment on column api.billing_profiles.organization_id is 'Whose it is; the platform''s own is the issuer.';
comment on column api.billing_profiles.billing_entity_type is 'Who pays: user, in a personal organization; else organization.';
comment on column api.billing_profiles.legal_name is 'Null: the organization''s name, or the person''s e-mail.';
comment on column api.billing_profiles.address is 'As it is printed: lines.';
comment on column api.billing_profiles.country is 'ISO 3166, two letters, such as DE.';
comment on column api.billing_profiles.email is 'Where questions about invoices go.';
comment on column api.billing_profiles.tax_id is 'As it is printed, such as DE123456789.';
comment on column api.billing_profiles.updated_at is 'When it was written last (UTC).';

create view api.billing_terms with (security_invoker) as
select
  t.organization_id,
  t.tax_name,
  t.tax_percent,
  t.tax_inclusive,
  t.payment_days,
  (select o.currency from tenancy.organizations o where o.id = t.organization_id) as currency,
  t.updated_at,
  t.invoice_mode
from billing.billing_terms t;

comment on view api.billing_terms is 'What was agreed with the provider. Without a row: no tax, 14 days, and the currency of the organization.';
comment on column api.billing_terms.organization_id is 'Whose terms these are.';
comment on column api.billing_terms.tax_name is 'As it is printed, such as VAT.';
comment on column api.billing_terms.tax_percent is 'Of 100; 0: no tax.';
comment on column api.billing_terms.tax_inclusive is 'Whether prices contain the tax.';
comment on column api.billing_terms.payment_days is 'How many days after it was issued an invoice is due.';
comment on column api.billing_terms.currency is 'ISO 4217, lowercase, such as usd. Never null.';
comment on column api.billing_terms.updated_at is 'When they were written last (UTC).';
comment on column api.billing_terms.invoice_mode is 'Whose invoice counts in periods that are not made yet: local, stripe_meters or stripe_items; '
  'null: as the platform has it, INVOICE_MODE.';

grant select on api.billing_profiles, api.billing_terms to member, platform_admin;

create function api.set_billing_profile(
  legal_name text default null, address text default null, country text default null, email text default null, tax_id text default null
)
returns api.billing_profiles
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_made api.billing_profiles;
begin
  select p.organization_id, p.billing_entity_type, p.legal_name, p.address, p.country, p.email, p.tax_id, p.updated_at into v_made
  from billing.set_billing_profile(
    set_billing_profile.legal_name, set_billing_profile.address, set_billing_profile.country, set_billing_profile.email,
    set_billing_profile.tax_id
  ) p;
  return v_made;
end;
$$;

comment on function api.set_billing_profile(text, text, text, text, text) is $$Say whom invoices are made out to

For owners, admins and billing users of the organization, and platform_admin. What is left out stays as it is, an empty text takes
it away. It holds for invoices that are issued from now on; in a personal organization it is the person's who pays. The platform's own,
with X-Organization-ID: platform, is the issuer on every invoice. Returns the profile as billing_profiles shows it.

Errors: INVALID_BILLING_PROFILE (400), ROLE_REQUIRED (403), ORGANIZATION_REQUIRED (400), ORGANIZATION_NOT_FOUND (404).$$;

create function api.set_billing_terms(
  tax_name text default null, tax_percent numeric default null, tax_inclusive boolean default null, payment_days integer default null,
  currency text default null, invoice_mode text default null
)
returns api.billing_terms
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_made api.billing_terms;
begin
  perform tenancy.require_staff('sets tax, due dates and the currency', 'GET /billing_terms shows what holds.');
  perform tenancy.require_organization();
  perform billing.set_billing_terms(
    set_billing_terms.tax_name, set_billing_terms.tax_percent, set_billing_terms.tax_inclusive, set_billing_terms.payment_days,
    set_billing_terms.currency, set_billing_terms.invoice_mode
  );
  select t.* into strict v_made from api.billing_terms t where t.organization_id = tenancy.current_org();
  return v_made;
end;
$$;

comment on function api.set_billing_terms(text, numeric, boolean, integer, text, text) is $$Set tax, due dates and the currency of an organization

For platform_admin. What is left out stays as it is. It holds for invoices that are issued from now on. tax_percent is given, not
computed: 19 is 19 %; tax_inclusive says whether prices contain it. payment_days is how long after it was issued an invoice is due. The
currency stays as it is from the first invoice on. invoice_mode says whose invoice counts: local, ours; stripe_meters or stripe_items,
Stripe's; default goes back to INVOICE_MODE. It holds for periods that are not made yet, never for the one that runs: what of a period was
reported to Stripe is not billed here. GET /billing_periods shows each period's. Returns the terms as billing_terms shows them.

Errors: INVALID_BILLING_TERMS (400), ROLE_REQUIRED (403), ORGANIZATION_REQUIRED (400), ORGANIZATION_NOT_FOUND (404),
CURRENCY_FIXED (409).$$;

grant execute on function api.set_billing_profile(text, text, text, text, text) to member, platform_admin;
grant execute on function api.set_billing_terms(text, numeric, boolean, integer, text, text) to member, service, platform_admin;
