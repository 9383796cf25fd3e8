-- What became of an invoice, from the ledgers beside it: nothing of this is stored, so it cannot disagree with them.
--
-- What is to be paid is the invoice's amount due, less what was paid and not paid back, less what credit notes took off it. A credit note takes
-- off what is still to be paid and puts the rest on the payer's balance; a refund for a credit note comes out of that balance, so that only
-- one without makes the invoice be paid again. What nobody will pay is written off: it is owed all the same, and may still be paid.

-- One row. A statement has none: its status is statement. status: open; paid: nothing is left to pay; void: all of it was credited, and nothing paid; uncollectible: the rest is written off.
-- paid_cents: less what was paid back without a credit note. credited_cents: also what went to the balance. remaining_cents: what is still
-- asked for. written_off_cents: what is owed and no more asked for.
-- A table function without `set search_path`, so that it is inlined: a page of invoices then looks into three indexes a row.
create or replace function billing.settlement(p_organization_id uuid, p_invoice_id uuid, p_total_cents numeric, p_amount_due_cents numeric)
returns table (status text, paid_cents numeric, credited_cents numeric, remaining_cents numeric, written_off_cents numeric)
language sql
stable
rows 1
as $$
  select
    case
      when o.owed_cents > o.written_off_cents then 'open'
      when o.owed_cents > 0 then 'uncollectible'
      when o.credited_cents > 0 and o.credited_cents = p_total_cents and o.paid_cents = 0 then 'void'
      else 'paid'
    end,
    o.paid_cents,
    o.credited_cents,
    greatest(o.owed_cents - o.written_off_cents, 0),
    least(o.owed_cents, o.written_off_cents)
  from (
    select
      l.paid_cents - l.reopened_cents as paid_cents,
      l.written_off_cents,
      l.credited_cents,
      coalesce(p_amount_due_cents, greatest(p_total_cents, 0))
        - (l.paid_cents - l.reopened_cents) - (l.credited_cents - l.to_balance_cents) as owed_cents
    from (
      select p.paid_cents, p.written_off_cents, r.reopened_cents, c.credited_cents, c.to_balance_cents
      from
        (
          select
            coalesce(sum(p.amount_cents) filter (where p.kind = 'payment'), 0) as paid_cents,
            coalesce(sum(p.amount_cents) filter (where p.kind = 'write_off'), 0) as written_off_cents
          from billing.payments p
          where p.organization_id = p_organization_id
            and p.invoice_id = p_invoice_id
        ) as p,
        (
          select coalesce(sum(r.amount_cents), 0) as reopened_cents
          from billing.payments p
          join billing.refunds r on r.organization_id = p.organization_id and r.payment_id = p.id
          where p.organization_id = p_organization_id
            and p.invoice_id = p_invoice_id
            and r.credit_note_id is null
        ) as r,
        (
          select coalesce(sum(c.total_cents), 0) as credited_cents, coalesce(sum(c.to_balance_cents), 0) as to_balance_cents
          from billing.credit_notes c
          where c.organization_id = p_organization_id
            and c.invoice_id = p_invoice_id
        ) as c
    ) as l
  ) as o
$$;

-- Whoever has many invoices asks the one above: a whole row brings along all that the invoice rests on.
create or replace function billing.settlement_of(p_invoice billing.invoices)
returns table (status text, paid_cents numeric, credited_cents numeric, remaining_cents numeric, written_off_cents numeric)
language sql
stable
rows 1
as $$
  select
    case p_invoice.kind when 'statement' then 'statement' else s.status end, s.paid_cents, s.credited_cents, s.remaining_cents, s.written_off_cents
  from billing.settlement(p_invoice.organization_id, p_invoice.id, p_invoice.total_cents, p_invoice.amount_due_cents) s
$$;

grant execute on function billing.settlement(uuid, uuid, numeric, numeric) to goldleaves_kernel, member, platform_admin;
grant execute on function billing.settlement_of(billing.invoices) to goldleaves_kernel;
