-- Prices, invoices and ledgers of now mean nothing to the version before: only while there are none does it go back.
set local role goldleaves_owner;
alter table billing.invoices no force row level security;
alter table billing.credit_notes no force row level security;
alter table billing.payments no force row level security;
alter table billing.billing_terms no force row level security;
alter table billing.billing_profiles no force row level security;
do $$
begin
  if exists (select from billing.prices where model <> 'per_unit' or plan_code is not null or dimension is not null
    or included_quantity <> 0 or minimum_cents is not null or maximum_cents is not null) then
    raise exception 'there are prices that the version before does not know'
      using hint = 'Restore a backup instead.';
  end if;
  if exists (select from billing.invoices where digest is not null)
    or exists (select from billing.credit_notes) or exists (select from billing.payments)
  then
    raise exception 'there are invoices, credit notes or payments that the version before would tell wrong'
      using hint = 'Restore a backup instead.';
  end if;
  if exists (select from billing.billing_terms) or exists (select from billing.billing_profiles) then
    raise exception 'there are billing terms or profiles, which the version before does not know'
      using hint = 'Restore a backup instead.';
  end if;
end
$$;

alter table metering.usage_rollups drop column digest;
drop type billing.rated_charge;
drop table billing.balance_entries;
drop table billing.refunds;
drop table billing.credit_note_lines;
drop table billing.credit_notes;
drop table billing.payments;
alter table billing.invoice_lines
  drop column value, drop column exact_cents, drop column belongs_to, drop column tiers, drop column price, drop column groups, drop column kind,
  alter column unit_amount_cents set not null,
  alter column unit set not null,
  alter column meter_code set not null;
alter table billing.invoices
  drop column issued_xid, drop column issued_generation, drop column digest, drop column facts, drop column rated_at, drop column due_at,
  drop column amount_due_cents, drop column balance_applied_cents, drop column tax_cents, drop column tax_inclusive, drop column tax_percent,
  drop column tax_name, drop column subtotal_cents, drop column issuer, drop column billing_profile, drop column plan_code, drop column timezone;
drop index billing.billing_periods_not_finalized;
alter table billing.billing_periods no force row level security;
update billing.billing_periods set status = 'open' where status = 'closing';
alter table billing.billing_periods
  drop constraint billing_periods_status_check,
  add constraint billing_periods_status_check check (status in ('open', 'finalized'));
alter table billing.billing_periods force row level security;
drop table billing.billing_terms;
drop table billing.billing_profiles;
drop index billing.prices_of_currency;
comment on table billing.prices is null;
delete from billing.prices p
using billing.prices q
where (q.meter_code, q.currency, q.effective_from) = (p.meter_code, p.currency, p.effective_from) and q.created_at > p.created_at;
alter table billing.prices
  drop constraint prices_pkey,
  drop column maximum_cents, drop column minimum_cents, drop column included_quantity, drop column tiers, drop column package_size,
  drop column model, drop column dimension_value, drop column dimension, drop column plan_code, drop column id,
  alter column created_at set default now(),
  alter column unit_amount_cents set not null,
  alter column meter_code set not null,
  drop constraint prices_currency_fkey,
  add primary key (meter_code, currency, effective_from);
drop index tenancy.organizations_currency;
drop index tenancy.organizations_plan;
alter table tenancy.organizations drop constraint organizations_plan_fkey, drop constraint organizations_currency_fkey;
drop table billing.plan_features;
drop table billing.plans;
drop table billing.currencies;
alter table billing.invoices force row level security;
revoke usage on schema billing from sidecar;
reset role;
