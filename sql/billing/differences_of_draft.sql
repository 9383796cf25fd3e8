-- The lines and amounts of an invoice, compared with those that come out when it is drafted anew: by the plan, currency, tax and prices that were
-- in force for it, and by the usage that there is now.

create or replace function billing.line_text(p_line billing.invoice_lines)
returns text
language sql
stable
set search_path = ''
as $$
  select concat_ws(
    ' ', p_line.kind, p_line.meter_code, nullif(p_line.groups, '{}')::text, 'of plan ' || nullif(billing.plan_of_line(p_line), ''),
    'of the period of ' || metering.time_text(p_line.belongs_to)
  )
$$;

-- Lines that are alike otherwise are of different plans, or of a trial, or a fee that Stripe charges.
create or replace function billing.plan_of_line(p_line billing.invoice_lines)
returns text
language sql
immutable
set search_path = ''
as $$
  select concat_ws(
    ' ', p_line.price ->> 'plan', case when (p_line.price ->> 'trial')::boolean then '(trial)' end,
    case when (p_line.price ->> 'by_stripe')::boolean then '(charged by Stripe)' end
  )
$$;

-- What of a line follows from usage and prices. Descriptions do not: a meter or plan may have been given another one since.
create or replace function billing.derived_of_line(p_line billing.invoice_lines)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object(
    'events', p_line.events,
    'quantity', trim_scale(p_line.quantity),
    'value', trim_scale(p_line.value),
    'unit', p_line.unit,
    'unit_amount_cents', trim_scale(p_line.unit_amount_cents),
    'price', p_line.price,
    'tiers', p_line.tiers,
    'exact_cents', trim_scale(p_line.exact_cents),
    'amount_cents', trim_scale(p_line.amount_cents)
  )
$$;

create or replace function billing.differences_of_draft(p_invoice billing.invoices, p_lines billing.invoice_lines[], p_timezone text)
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  with drafts as materialized (
    select d.invoice, d.lines, (d.invoice).payer_user_id is not distinct from p_invoice.payer_user_id as is_this
    from billing.draft_invoices(p_invoice.organization_id, p_invoice.period_start, p_invoice.period_end, p_timezone, p_invoice) d
  ),
  lines as (
    select
      billing.line_text(case when s.kind is null then d.line else s.line end) as name,
      s.kind is not null as is_stored, d.kind is not null as is_drafted, coalesce(s.kind, d.kind) = 'tax' as is_tax,
      m.key, billing.derived_of_line(s.line) -> m.key as stored, m.value as drafted
    from (
      select l as line, l.kind, l.meter_code, l.groups, l.belongs_to, billing.plan_of_line(l) as plan from unnest(p_lines) l
    ) as s
    full join (
      select l as line, l.kind, l.meter_code, l.groups, l.belongs_to, billing.plan_of_line(l) as plan
      from drafts t
      cross join lateral unnest(t.lines) l
      where t.is_this
    ) as d
      on d.kind = s.kind
      and coalesce(d.meter_code, '') = coalesce(s.meter_code, '')
      and d.groups = s.groups
      and coalesce(d.belongs_to, '-infinity') = coalesce(s.belongs_to, '-infinity')
      and d.plan = s.plan
    cross join lateral jsonb_each(billing.derived_of_line(d.line)) as m
  ),
  differing as (
    select
      l.*, bool_or(l.key in ('price', 'amount_cents')) over (partition by l.name) as is_plain,
      bool_or(not l.is_tax) over () as is_taxed_differently
    from lines l
    where l.stored is distinct from l.drafted
      and (l.is_stored and l.is_drafted or l.key = 'amount_cents')
  )
  select
    case l.key when 'price' then 'price' else 'line' end,
    case when l.is_stored then l.stored #>> '{}' end,
    case when l.is_drafted then l.drafted #>> '{}' end,
    format(
      case
        when not l.is_drafted then 'line %s: nothing makes it any more'
        when not l.is_stored then 'line %s is missing'
        when l.key = 'price' then 'line %s: the price it was rated by is not what it was'
        else 'line %s: %s is not what comes out now'
      end,
      l.name, l.key
    )
  from differing l
  -- The rest of a line follows from these, and its tax from the other lines.
  where (l.key in ('price', 'amount_cents') or not l.is_plain)
    and not (l.is_tax and l.is_taxed_differently)
  union all
  select 'total', c.stored::text, c.drafted::text, format('%s is not what comes out now', c.name)
  from drafts d
  cross join lateral (
    values
      ('the subtotal', p_invoice.subtotal_cents, (d.invoice).subtotal_cents),
      ('the tax', p_invoice.tax_cents, (d.invoice).tax_cents),
      ('the total', p_invoice.total_cents, (d.invoice).total_cents),
      ('the amount due', p_invoice.amount_due_cents, (d.invoice).amount_due_cents)
  ) as c (name, stored, drafted)
  where d.is_this
    and c.stored is distinct from c.drafted
    -- The others follow from it.
    and (c.name = 'the total' or p_invoice.total_cents = (d.invoice).total_cents)
  union all
  select
    'payer', null, (d.invoice).billing_entity_id::text,
    format('%s %s pays for usage of this period, and has no invoice', (d.invoice).billing_entity_type, (d.invoice).billing_entity_id)
  from drafts d
  -- Who has used nothing and owes nothing may have none.
  where d.lines <> '{}'
    and not exists (
      select
      from billing.invoices i
      where i.organization_id = p_invoice.organization_id
        and i.period_start = p_invoice.period_start
        and i.payer_user_id is not distinct from (d.invoice).payer_user_id
    )
  union all
  select 'payer', p_invoice.billing_entity_id::text, null, 'nothing in this period is for who the invoice is made out to'
  where not exists (select from drafts d where d.is_this)
$$;

-- Invoices that are older than digests keep a quantity and a price a meter, and that is what can be verified of them.
create or replace function billing.differences_of_old_lines(p_invoice billing.invoices, p_lines billing.invoice_lines[])
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  with used as (
    select m.meter_code, m.events, m.quantity
    from metering.measure(p_invoice.organization_id, array[p_invoice.period_start, p_invoice.period_end]) m
    where m.metered
      and m.billing_entity_id = p_invoice.billing_entity_id
  )
  select
    'line', format('quantity %s of %s events', trim_scale(l.quantity), l.events),
    format('quantity %s of %s events', trim_scale(coalesce(u.quantity, 0)), coalesce(u.events, 0)),
    format('line %s: its events are not those that the invoice rests on', billing.line_text(l))
  from unnest(p_lines) l
  left join used u on u.meter_code = l.meter_code
  where (l.events, l.quantity) is distinct from (u.events, u.quantity)
  union all
  select
    'line', l.amount_cents::text, round(l.quantity * l.unit_amount_cents)::text,
    format('line %s: the amount is not its quantity times its price', billing.line_text(l))
  from unnest(p_lines) l
  where l.amount_cents <> round(l.quantity * l.unit_amount_cents)
$$;

grant execute on function billing.plan_of_line(billing.invoice_lines),
  billing.line_text(billing.invoice_lines), billing.derived_of_line(billing.invoice_lines),
  billing.differences_of_draft(billing.invoices, billing.invoice_lines[], text),
  billing.differences_of_old_lines(billing.invoices, billing.invoice_lines[]) to goldleaves_kernel;
