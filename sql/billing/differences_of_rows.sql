-- The rows of an invoice by themselves: whether they are what its digest and the audit log say, and whether they agree with each other, with
-- the balance, with the period, and with the numbers of the other invoices.
create or replace function billing.differences_of_rows(p_invoice billing.invoices, p_lines billing.invoice_lines[])
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  select 'digest', p_invoice.digest, d.digest, 'the invoice and its lines are not those that the digest was made of'
  from billing.digest_of(p_invoice, p_lines) as d (digest)
  where p_invoice.digest <> d.digest
  union all
  select * from billing.differences_of_log(p_invoice)
  union all
  select c.what, c.expected::text, c.found::text, c.detail
  from (
    select
      coalesce(sum(l.amount_cents), 0) as lines_cents,
      coalesce(sum(l.amount_cents) filter (where l.kind <> 'tax'), 0) as untaxed_cents
    from unnest(p_lines) l
  ) as s
  cross join lateral (
    values
      ('total', s.lines_cents, p_invoice.total_cents, 'the total is not the sum of the lines'),
      ('total', s.untaxed_cents, coalesce(p_invoice.subtotal_cents, s.untaxed_cents), 'the subtotal is not the sum of the lines before tax'),
      (
        'total',
        case p_invoice.kind when 'invoice' then greatest(p_invoice.total_cents, 0) - p_invoice.balance_applied_cents else 0 end,
        p_invoice.amount_due_cents, 'the amount due is not the total less the balance that was applied, or 0 of a statement'
      ),
      (
        'balance', p_invoice.balance_applied_cents,
        (
          select coalesce(- sum(b.amount_cents), 0)
          from billing.balance_entries b
          where b.organization_id = p_invoice.organization_id
            and b.invoice_id = p_invoice.id
            and b.kind = 'applied'
        ),
        'the balance that was applied is not what the payer''s balance was lowered by'
      ),
      (
        'balance',
        case when p_invoice.kind = 'statement' then 0 when p_invoice.digest is not null then greatest(- p_invoice.total_cents, 0) end,
        (
          select coalesce(sum(b.amount_cents), 0)
          from billing.balance_entries b
          where b.organization_id = p_invoice.organization_id
            and b.invoice_id = p_invoice.id
            and b.kind = 'negative_invoice'
        ),
        'what the total is below zero is not what was put on the payer''s balance'
      )
  ) as c (what, expected, found, detail)
  where c.expected <> c.found
  union all
  select 'period', 'finalized', coalesce(p.status, 'no such period'), 'the invoice is issued, and its period is not closed as it was'
  from (values (p_invoice.organization_id, p_invoice.period_start, p_invoice.period_end)) as i (organization_id, period_start, period_end)
  left join billing.billing_periods p
    on p.organization_id = i.organization_id and p.period_start = i.period_start and p.period_end = i.period_end
  where p.status is distinct from 'finalized'
    or p.timezone <> coalesce(p_invoice.timezone, p.timezone)
  union all
  select 'kind', k.kind, p_invoice.kind, format('whose invoice counts in the period is %s', p.invoice_mode)
  from billing.billing_periods p
  cross join lateral (select case p.invoice_mode when 'local' then 'invoice' else 'statement' end as kind) as k
  where p.organization_id = p_invoice.organization_id
    and p.period_start = p_invoice.period_start
    and k.kind <> p_invoice.kind
  union all
  select
    'period', coalesce(l.before, '{}')::text, coalesce(l.after, '{}')::text,
    format('the audit log (entry %s) tells that the period was changed once it was finalized', l.position)
  from audit.log l
  where l.organization_id = p_invoice.organization_id
    and l.target_type = 'billing_period'
    and (l.target_id::timestamptz, l.before ->> 'status') = (p_invoice.period_start, 'finalized')
  union all
  (
    select
      'number', n.number, null,
      format('the numbers of %s have a gap: there is no invoice %s', left(p_invoice.number, 4), n.number)
    from (
      select max(split_part(i.number, '-', 2)::integer) as last
      from billing.invoices i
      where i.organization_id = p_invoice.organization_id
        and i.number like left(p_invoice.number, 4) || '-%'
    ) as y
    cross join lateral generate_series(1, y.last) as g (n)
    cross join lateral (
      select format('%s-%s', left(p_invoice.number, 4), lpad(g.n::text, greatest(4, length(g.n::text)), '0')) as number
    ) as n
    where not exists (select from billing.invoices i where i.organization_id = p_invoice.organization_id and i.number = n.number)
    order by g.n
    limit 20
  )
$$;

-- What the audit log says of the invoice: it was written with it, in a chain of its own, so who rewrites the invoice and its digest is found.
create or replace function billing.differences_of_log(p_invoice billing.invoices)
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  with entries as materialized (
    select l.*
    from audit.log l
    where l.organization_id = p_invoice.organization_id
      and l.target_type = 'invoice'
      and l.target_id = p_invoice.id::text
  )
  select
    'audit log', null, null,
    'the audit log has no entry of this invoice: it was not issued by closing its period, or the log was cut (goldleaves audit verify)'
  where p_invoice.digest is not null
    and not exists (select from entries e where e.action = 'invoice.created')
  union all
  select
    'audit log', m.value #>> '{}', to_jsonb(p_invoice) ->> m.key,
    format('%s is not what the audit log (entry %s) says the invoice was issued with', m.key, e.position)
  from entries e
  cross join lateral jsonb_each(e.after) as m
  where e.action = 'invoice.created'
    and m.key <> 'facts'
    and m.value is distinct from to_jsonb(p_invoice) -> m.key
  union all
  select
    'audit log', coalesce(e.before, '{}')::text, coalesce(e.after, '{}')::text,
    format('the audit log (entry %s) tells that the invoice was changed once it was issued', e.position)
  from entries e
  where e.action <> 'invoice.created'
  union all
  select
    'audit log', encode(e.hash, 'hex'), encode(audit.hash_of(l), 'hex'),
    format('entry %s of the audit log, which tells of this invoice, was rewritten', e.position)
  from entries e
  join audit.log l on l.organization_id = e.organization_id and l.position = e.position
  where e.hash <> audit.hash_of(l)
  union all
  -- Not of this invoice alone: a number at the end that is gone leaves no gap.
  select
    'audit log', coalesce(l.after ->> 'number', l.target_id), null,
    format('the audit log (entry %s) knows an invoice %s that is not there', l.position, coalesce(l.after ->> 'number', l.target_id))
  from audit.log l
  where l.organization_id = p_invoice.organization_id
    and l.target_type = 'invoice'
    and l.action = 'invoice.created'
    and not exists (select from billing.invoices i where i.organization_id = l.organization_id and i.id::text = l.target_id)
$$;

grant execute on function billing.differences_of_rows(billing.invoices, billing.invoice_lines[]),
  billing.differences_of_log(billing.invoices) to goldleaves_kernel;
