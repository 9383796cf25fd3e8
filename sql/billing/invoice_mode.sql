-- Whose invoice counts (INVOICE_MODE, or what the terms of an organization say): local is ours, stripe_meters and stripe_items are Stripe's. A
-- period has the one of when it was made, for ever: what of it was reported to Stripe is not billed here, and the other way round.

create or replace function billing.invoice_mode_now(p_organization_id uuid)
returns text
language sql
stable
set search_path = ''
as $$
  select coalesce(
    (select t.invoice_mode from billing.billing_terms t where t.organization_id = p_organization_id),
    (select d.invoice_mode from billing.defaults d)
  )
$$;

-- Of the period around a moment: as it is stored, or as it would be made.
create or replace function billing.invoice_mode_of(p_organization_id uuid, p_at timestamptz)
returns text
language sql
stable
set search_path = ''
as $$
  select coalesce(
    (
      select p.invoice_mode
      from billing.billing_periods p
      where p.organization_id = p_organization_id
        and p.period_start <= p_at
        and p.period_end > p_at
    ),
    billing.invoice_mode_now(p_organization_id)
  )
$$;

grant execute on function billing.invoice_mode_now(uuid), billing.invoice_mode_of(uuid, timestamptz) to goldleaves_kernel;
