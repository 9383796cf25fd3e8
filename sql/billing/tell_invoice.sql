-- What the provider's application is told of an invoice when it is issued: what it says, in the words of the view invoices.
create or replace function billing.tell_invoice(p_organization_id uuid, p_invoice_id uuid)
returns void
language sql
volatile
set search_path = ''
set timezone = 'UTC'
as $$
  select notifications.enqueue_webhook(
    p_organization_id, 'invoice.finalized',
    jsonb_build_object(
      'id', i.id, 'organization_id', i.organization_id, 'kind', i.kind, 'number', i.number,
      'billing_entity_type', i.billing_entity_type, 'billing_entity_id', i.billing_entity_id,
      'period_start', i.period_start, 'period_end', i.period_end, 'timezone', i.timezone,
      'currency', i.currency, 'subtotal_cents', i.subtotal_cents, 'tax_cents', i.tax_cents, 'total_cents', i.total_cents,
      'balance_applied_cents', i.balance_applied_cents, 'amount_due_cents', i.amount_due_cents,
      'issued_at', i.issued_at, 'due_at', i.due_at,
      -- Nobody can have paid anything yet.
      'status', case when i.kind = 'statement' then 'statement' when i.amount_due_cents > 0 then 'open' else 'paid' end
    )
  )
  from billing.invoices i
  where i.organization_id = p_organization_id
    and i.id = p_invoice_id
$$;

grant execute on function billing.tell_invoice(uuid, uuid) to goldleaves_kernel;
