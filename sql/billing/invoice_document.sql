-- An invoice as one JSON document: what people download, and what the printable page and the CSV are made of. Previews have the same shape,
-- so that what was shown during the month can be compared with what was issued, field by field. Amounts are numbers, in minor units.

-- p_invoice without an id is a draft: nothing was paid or credited, it has no number, and is not due.
create or replace function billing.document_of(p_invoice billing.invoices, p_lines billing.invoice_lines[])
returns jsonb
language plpgsql
stable
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_settlement record;
  v_timezone text := coalesce(p_invoice.timezone, (
    select p.timezone
    from billing.billing_periods p
    where p.organization_id = p_invoice.organization_id
      and p.period_start = p_invoice.period_start
  ));
  v_subtotal numeric := coalesce(p_invoice.subtotal_cents, p_invoice.total_cents);
  v_due numeric := coalesce(p_invoice.amount_due_cents, greatest(p_invoice.total_cents, 0));
begin
  if p_invoice.id is null then
    select 'draft' as status, 0::numeric as paid_cents, 0::numeric as credited_cents, v_due as remaining_cents, 0::numeric as written_off_cents
    into v_settlement;
  else
    select * into v_settlement from billing.settlement_of(p_invoice);
  end if;

  return jsonb_build_object(
    'id', p_invoice.id,
    -- A statement is no invoice: Stripe's counts.
    'kind', p_invoice.kind,
    'number', p_invoice.number,
    'status', v_settlement.status,
    'organization_id', p_invoice.organization_id,
    'billing_entity', jsonb_build_object(
      'type', case when p_invoice.payer_user_id is null then 'organization' else 'user' end,
      'id', coalesce(p_invoice.payer_user_id, p_invoice.organization_id)
    ),
    -- Invoices of before profiles kept none.
    'issuer', coalesce(p_invoice.issuer, billing.profile_of('00000000-0000-0000-0000-000000000000', 'organization')),
    'billed_to', coalesce(
      p_invoice.billing_profile,
      billing.profile_of(p_invoice.organization_id, case when p_invoice.payer_user_id is null then 'organization' else 'user' end)
    ),
    'plan', p_invoice.plan_code,
    'period', billing.period_shown(p_invoice.period_start, p_invoice.period_end, v_timezone),
    'issued_at', p_invoice.issued_at,
    'issue_date', (p_invoice.issued_at at time zone v_timezone)::date,
    'due_at', p_invoice.due_at,
    'due_date', (p_invoice.due_at at time zone v_timezone)::date,
    'currency', p_invoice.currency,
    'minor_units', coalesce((select c.minor_units from billing.currencies c where c.code = p_invoice.currency), 2),
    'lines', billing.lines_shown(array(select l from unnest(p_lines) l where l.kind in ('fee', 'usage'))),
    'adjustments', billing.lines_shown(array(select l from unnest(p_lines) l where l.kind = 'adjustment'), p_invoice.payer_user_id),
    'tax', (
      select jsonb_build_object(
        'line_number', l.line_number, 'name', p_invoice.tax_name, 'percent', trim_scale(p_invoice.tax_percent),
        'inclusive', p_invoice.tax_inclusive, 'amount_cents', p_invoice.tax_cents, 'description', l.description
      )
      from unnest(p_lines) l
      where l.kind = 'tax'
    ),
    'subtotal_cents', v_subtotal,
    'tax_cents', coalesce(p_invoice.tax_cents, 0),
    'total_cents', p_invoice.total_cents,
    'balance_applied_cents', coalesce(p_invoice.balance_applied_cents, 0),
    'amount_due_cents', v_due,
    'paid_cents', v_settlement.paid_cents,
    'credited_cents', v_settlement.credited_cents,
    'remaining_cents', v_settlement.remaining_cents,
    'written_off_cents', v_settlement.written_off_cents,
    'payments', (
      select coalesce(jsonb_agg(
        jsonb_build_object(
          'id', p.id, 'kind', p.kind, 'amount_cents', p.amount_cents, 'method', p.method, 'reference', p.reference,
          'paid_at', p.paid_at, 'paid_date', (p.paid_at at time zone v_timezone)::date,
          'refunded_cents', (
            select coalesce(sum(r.amount_cents), 0)
            from billing.refunds r
            where r.organization_id = p.organization_id
              and r.payment_id = p.id
          )
        )
        order by p.paid_at, p.id
      ), '[]')
      from billing.payments p
      where p.organization_id = p_invoice.organization_id
        and p.invoice_id = p_invoice.id
    ),
    'credit_notes', (
      select coalesce(jsonb_agg(
        jsonb_build_object(
          'id', n.id, 'number', n.number, 'reason', n.reason, 'issued_at', n.issued_at,
          'issue_date', (n.issued_at at time zone v_timezone)::date, 'subtotal_cents', n.subtotal_cents, 'tax_cents', n.tax_cents,
          'total_cents', n.total_cents, 'to_balance_cents', n.to_balance_cents
        )
        order by n.issued_at, n.id
      ), '[]')
      from billing.credit_notes n
      where n.organization_id = p_invoice.organization_id
        and n.invoice_id = p_invoice.id
    ),
    'digest', p_invoice.digest
  );
end;
$$;

-- end_date is the first day after it, as in the view billing_periods.
create or replace function billing.period_shown(p_start timestamptz, p_end timestamptz, p_timezone text)
returns jsonb
language sql
stable
set search_path = ''
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'start', p_start,
    'end', p_end,
    'start_date', (p_start at time zone p_timezone)::date,
    'end_date', (p_end at time zone p_timezone)::date,
    'timezone', p_timezone
  )
$$;

-- Adjustments say which finalized period they belong to, and which invoice of the same payer was for it.
create or replace function billing.lines_shown(p_lines billing.invoice_lines[], p_payer_user_id uuid default null)
returns jsonb
language sql
stable
set search_path = ''
set timezone = 'UTC'
as $$
  select coalesce(jsonb_agg(
    jsonb_build_object(
      'line_number', l.line_number,
      'kind', l.kind,
      'meter', l.meter_code,
      'groups', l.groups,
      'description', l.description,
      'unit', l.unit,
      'events', l.events,
      'quantity', trim_scale(l.quantity),
      -- Null where units have no one price, as in a package: see tiers.
      'unit_amount_cents', trim_scale(l.unit_amount_cents),
      'price', l.price,
      'tiers', coalesce(l.tiers, '[]'),
      'exact_cents', trim_scale(coalesce(l.exact_cents, l.amount_cents)),
      'amount_cents', l.amount_cents
    )
      || case
        when l.kind = 'adjustment' then jsonb_build_object('belongs_to', (
          select billing.period_shown(b.period_start, b.period_end, b.timezone) || jsonb_build_object('invoice_number', (
            select i.number
            from billing.invoices i
            where i.organization_id = l.organization_id
              and i.period_start = l.belongs_to
              and i.payer_user_id is not distinct from p_payer_user_id
          ))
          from billing.billing_periods b
          where b.organization_id = l.organization_id
            and b.period_start = l.belongs_to
        ))
        else '{}'
      end
    order by l.line_number
  ), '[]')
  from unnest(p_lines) l
$$;

-- One that was issued. An id of another organization is as unknown as one that is not there.
create or replace function billing.invoice_document(p_invoice_id text)
returns jsonb
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_invoice billing.invoices;
begin
  perform tenancy.require_organization();
  perform tenancy.require_role_in('owner', 'admin', 'billing');
  select i.* into v_invoice
  from billing.invoices i
  where i.organization_id = tenancy.current_org()
    and i.id::text = lower(p_invoice_id);
  if v_invoice.id is null then
    raise exception using
      errcode = 'PT404',
      message = format('INVOICE_NOT_FOUND: there is no invoice %s', coalesce(left(p_invoice_id, 80), 'null')),
      hint = 'GET /invoices lists them; id is what is asked for here, not the number.';
  end if;
  return billing.document_of(v_invoice, array(
    select l
    from billing.invoice_lines l
    where l.organization_id = v_invoice.organization_id
      and l.invoice_id = v_invoice.id
    order by l.line_number
  ));
end;
$$;

-- The invoice that would be issued if nothing more came: of who pays when the period ends, or, in the period of a conversion, of the one
-- that is named. It changes nothing.
create or replace function billing.preview_invoice(p_period_start date, p_billing_entity_type text)
returns jsonb
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_period record;
  v_draft record;
  v_issued uuid;
  v_payer_type text;
begin
  perform tenancy.require_organization();
  perform tenancy.require_role_in('owner', 'admin', 'billing');
  select * into v_period from billing.period_from_date(tenancy.current_org(), p_period_start);
  select case
    when p_billing_entity_type is not null then p_billing_entity_type
    when billing.payer(o.billing_user_id, o.billing_start_at, v_period.period_end - interval '1 microsecond') is null then 'organization'
    else 'user'
  end into v_payer_type
  from tenancy.organizations o
  where o.id = tenancy.current_org();

  if v_period.status = 'finalized' then
    select i.id into v_issued
    from billing.invoices i
    where i.organization_id = tenancy.current_org()
      and i.period_start = v_period.period_start
      and i.billing_entity_type = v_payer_type;
    raise exception using
      errcode = 'PT409',
      message = format(
        'BILLING_PERIOD_LOCKED: the period that starts on %s is finalized, so there is nothing to preview',
        (v_period.period_start at time zone v_period.timezone)::date
      ),
      hint = coalesce(
        format('Its invoice was issued: GET /rpc/invoice_document?invoice_id=%s', v_issued), 'GET /invoices lists what was issued.'
      );
  end if;

  select d.invoice, d.lines into v_draft
  from billing.draft_invoices(tenancy.current_org(), v_period.period_start, v_period.period_end, v_period.timezone) d
  where (d.invoice).billing_entity_type = v_payer_type;
  if not found then
    raise exception using
      errcode = 'PT404',
      message = format('BILLING_ENTITY_NOT_FOUND: nobody of type %s pays in this period', left(v_payer_type, 80)),
      hint = 'billing_entity_type is user or organization. Leave it out for who pays when the period ends.';
  end if;
  return billing.document_of(v_draft.invoice, v_draft.lines);
end;
$$;

alter function billing.invoice_document(text) owner to goldleaves_kernel;
alter function billing.preview_invoice(date, text) owner to goldleaves_kernel;
grant execute on function billing.document_of(billing.invoices, billing.invoice_lines[]),
  billing.period_shown(timestamptz, timestamptz, text), billing.lines_shown(billing.invoice_lines[], uuid) to goldleaves_kernel;
grant execute on function billing.invoice_document(text), billing.preview_invoice(date, text) to member, platform_admin;
