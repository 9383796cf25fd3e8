-- What the provider agreed with an organization: tax, when invoices are due, and the currency. It holds for invoices from the next one on. Whose
-- invoice counts holds for periods that are not made yet.

-- Null leaves a part as it is. p_invoice_mode: default goes back to INVOICE_MODE.
create or replace function billing.set_billing_terms(
  p_tax_name text, p_tax_percent numeric, p_tax_inclusive boolean, p_payment_days integer, p_currency text,
  p_invoice_mode text
)
returns billing.billing_terms
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_made billing.billing_terms;
  v_currency text := lower(btrim(p_currency));
  v_problem text := case
    when p_tax_name ~ '[[:cntrl:]]' or length(btrim(p_tax_name)) not between 1 and 64 then 'tax_name has 1 to 64 characters, in one line'
    when not (p_tax_percent >= 0 and p_tax_percent <= 100) or scale(trim_scale(p_tax_percent)) > 6
      then 'tax_percent is between 0 and 100, with at most 6 decimals'
    when p_payment_days not between 0 and 365 then 'payment_days is between 0 and 365'
    when p_currency is not null and not exists (select from billing.currencies c where c.code = v_currency)
      then format('there is no currency %s', left(p_currency, 80))
    when p_invoice_mode not in ('local', 'stripe_meters', 'stripe_items', 'default')
      then 'invoice_mode is local, stripe_meters, stripe_items or default'
  end;
begin
  if v_problem is not null then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_BILLING_TERMS: ' || v_problem,
      hint = 'What is left out stays as it is. GET /billing_terms shows what holds.';
  end if;

  if p_currency is not null then
    update tenancy.organizations o set currency = v_currency where o.id = tenancy.current_org() and o.currency <> v_currency;
  end if;
  insert into billing.billing_terms as t (organization_id, tax_name, tax_percent, tax_inclusive, payment_days, invoice_mode)
  values (
    tenancy.current_org(), coalesce(btrim(p_tax_name), 'Tax'), coalesce(trim_scale(p_tax_percent), 0), coalesce(p_tax_inclusive, false),
    coalesce(p_payment_days, 14), nullif(p_invoice_mode, 'default')
  )
  on conflict (organization_id) do update set
    tax_name = case when p_tax_name is null then t.tax_name else excluded.tax_name end,
    tax_percent = case when p_tax_percent is null then t.tax_percent else excluded.tax_percent end,
    tax_inclusive = coalesce(p_tax_inclusive, t.tax_inclusive),
    payment_days = coalesce(p_payment_days, t.payment_days),
    invoice_mode = case when p_invoice_mode is null then t.invoice_mode else excluded.invoice_mode end,
    updated_at = now()
  returning * into v_made;
  return v_made;
end;
$$;

alter function billing.set_billing_terms(text, numeric, boolean, integer, text, text) owner to goldleaves_kernel;
grant execute on function billing.set_billing_terms(text, numeric, boolean, integer, text, text) to platform_admin;
