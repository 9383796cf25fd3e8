-- Credit notes: how a mistake on an invoice is mended, which itself never changes. What the invoice still asks for is taken off that; what is
-- more goes to the payer's balance, which the next invoice takes off.

create or replace function billing.raise_invalid_credit_note(p_problem text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT400',
    message = 'INVALID_CREDIT_NOTE: ' || p_problem,
    hint = 'Send {"invoice_id": …, "lines": [{"line_number": 1, "amount_cents": 500}], "reason": …}; without lines all that is left is credited.';
end;
$$;

-- The lines that somebody named, by number. p_lines: [{"line_number": 2, "amount_cents": 500}, …]
create or replace function billing.read_credit_lines(p_lines jsonb)
returns table (line_number integer, amount_cents numeric)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_line jsonb;
begin
  if jsonb_typeof(p_lines) <> 'array' or p_lines = '[]' then
    perform billing.raise_invalid_credit_note('lines is a list of lines of the invoice');
  end if;
  for v_line in select * from jsonb_array_elements(p_lines) loop
    if jsonb_typeof(v_line) <> 'object'
      or (select array_agg(k order by k) from jsonb_object_keys(v_line) k) is distinct from array['amount_cents', 'line_number']
      or jsonb_typeof(v_line -> 'line_number') <> 'number' or jsonb_typeof(v_line -> 'amount_cents') <> 'number'
    then
      perform billing.raise_invalid_credit_note(
        format('each of lines has the numbers line_number and amount_cents, not %s', left(v_line::text, 200))
      );
    end if;
    if (v_line ->> 'line_number')::numeric not between 1 and 1e9 or trunc((v_line ->> 'line_number')::numeric) <> (v_line ->> 'line_number')::numeric
      or (v_line ->> 'amount_cents')::numeric not between 1 and 1e15
      or trunc((v_line ->> 'amount_cents')::numeric) <> (v_line ->> 'amount_cents')::numeric
    then
      perform billing.raise_invalid_credit_note('line_number and amount_cents are whole numbers from 1 on');
    end if;
    line_number := (v_line ->> 'line_number')::numeric::integer;
    amount_cents := trunc((v_line ->> 'amount_cents')::numeric);
    return next;
  end loop;
end;
$$;

-- For platform_admin: EXECUTE says so. p_lines null: all that is left. p_reference null: each call is another note; else a retry returns the
-- same one.
create or replace function billing.create_credit_note(
  p_organization_id uuid, p_invoice_id uuid, p_lines jsonb, p_reason text, p_reference text
)
returns billing.credit_notes
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_lines jsonb := nullif(p_lines, 'null');
  v_invoice billing.invoices;
  v_note billing.credit_notes;
  v_settlement record;
  v_credited record;
  v_of_subtotal numeric;
  v_problem text;
begin
  if coalesce(length(btrim(p_reason)), 0) = 0 or length(p_reason) > 1000 then
    perform billing.raise_invalid_credit_note('reason needs 1 to 1000 characters');
  end if;
  if length(p_reference) > 255 or btrim(p_reference) = '' then
    perform billing.raise_invalid_credit_note('reference needs 1 to 255 characters, or is left out');
  end if;
  perform billing.take_ledger_lock(p_organization_id);

  select * into v_invoice from billing.invoices i where i.organization_id = p_organization_id and i.id = p_invoice_id;
  if not found then
    perform billing.raise_no_invoice(p_invoice_id);
  end if;
  perform billing.require_payable(v_invoice);
  v_of_subtotal := coalesce(v_invoice.subtotal_cents, v_invoice.total_cents);
  select * into v_note from billing.credit_notes c where c.organization_id = p_organization_id and c.reference = p_reference;
  if found then
    if v_note.invoice_id <> p_invoice_id or v_note.reason <> p_reason or not billing.credits_the_same(v_note, v_of_subtotal, v_lines) then
      perform billing.raise_reference_taken(p_reference, 'credit note');
    end if;
    return v_note;
  end if;

  select * into v_credited from billing.credited_of(p_organization_id, p_invoice_id);
  v_note.organization_id := p_organization_id;
  v_note.id := ops.new_id();
  v_note.invoice_id := p_invoice_id;
  v_note.reference := coalesce(p_reference, v_note.id::text);

  if v_lines is null then
    v_lines := billing.all_that_is_left(v_invoice, v_of_subtotal - v_credited.subtotal_cents);
    if v_lines is null then
      perform billing.raise_credit_too_high(format('invoice %s has nothing left to be credited', v_invoice.number));
    end if;
  end if;
  select
    case
      when count(*) > count(distinct n.line_number) then 'each line is named once'
      when count(l.line_number) < count(*) then format(
        'line %s of invoice %s cannot be credited: it is not there, or takes something off, or is the tax, which comes in proportion',
        min(n.line_number) filter (where l.line_number is null), v_invoice.number
      )
    end,
    sum(n.amount_cents)
  into v_problem, v_note.subtotal_cents
  from billing.read_credit_lines(v_lines) n
  left join billing.creditable_lines(p_organization_id, p_invoice_id) l using (line_number);
  if v_problem is not null then
    perform billing.raise_invalid_credit_note(v_problem);
  end if;

  v_note.tax_cents := coalesce(
    billing.tax_in_proportion(v_credited.subtotal_cents + v_note.subtotal_cents, nullif(v_of_subtotal, 0), coalesce(v_invoice.tax_cents, 0)), 0
  ) - v_credited.tax_cents;
  v_note.total_cents := v_note.subtotal_cents + case when v_invoice.tax_inclusive then 0 else v_note.tax_cents end;
  select * into v_settlement from billing.settlement_of(v_invoice);
  v_note.to_balance_cents := greatest(v_note.total_cents - v_settlement.remaining_cents - v_settlement.written_off_cents, 0);

  insert into billing.credit_notes (
    organization_id, id, invoice_id, payer_user_id, currency, reason, issued_by, reference, subtotal_cents, tax_cents, total_cents, to_balance_cents
  )
  values (
    p_organization_id, v_note.id, p_invoice_id, v_invoice.payer_user_id, v_invoice.currency, p_reason, billing.author(), v_note.reference,
    v_note.subtotal_cents, v_note.tax_cents, v_note.total_cents, v_note.to_balance_cents
  )
  returning * into v_note;
  insert into billing.credit_note_lines (
    organization_id, credit_note_id, line_number, invoice_id, invoice_line_number, description, amount_cents
  )
  select
    p_organization_id, v_note.id, row_number() over (order by n.line_number), p_invoice_id, n.line_number, l.description, n.amount_cents
  from billing.read_credit_lines(v_lines) n
  join billing.creditable_lines(p_organization_id, p_invoice_id) l using (line_number);
  insert into billing.balance_entries (organization_id, payer_user_id, currency, kind, amount_cents, credit_note_id)
  select p_organization_id, v_invoice.payer_user_id, v_invoice.currency, 'credit_note', v_note.to_balance_cents, v_note.id
  where v_note.to_balance_cents > 0;
  return v_note;
end;
$$;

-- The rest of each line, in the form that callers have; where negative lines took something off the invoice, up to what it came to. Null:
-- there is nothing left.
create or replace function billing.all_that_is_left(p_invoice billing.invoices, p_left_cents numeric)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_agg(jsonb_build_object('line_number', r.line_number, 'amount_cents', r.amount_cents) order by r.line_number)
  from (
    select
      l.line_number,
      least(l.left_cents, p_left_cents - (sum(l.left_cents) over (order by l.line_number) - l.left_cents)) as amount_cents
    from billing.creditable_lines(p_invoice.organization_id, p_invoice.id) l
  ) as r
  where r.amount_cents > 0
$$;

-- Whether a retry says what the note says. p_lines null, all that was left: after this note there was nothing.
create or replace function billing.credits_the_same(p_note billing.credit_notes, p_of_subtotal_cents numeric, p_lines jsonb)
returns boolean
language sql
volatile
set search_path = ''
as $$
  select case
    when p_lines is null then p_of_subtotal_cents = (
      select sum(c.subtotal_cents)
      from billing.credit_notes c
      where c.organization_id = p_note.organization_id
        and c.invoice_id = p_note.invoice_id
        and c.issued_at <= p_note.issued_at
    )
    else not exists (
      select
      from billing.read_credit_lines(p_lines) n
      full join (
        select l.invoice_line_number as line_number, l.amount_cents
        from billing.credit_note_lines l
        where l.organization_id = p_note.organization_id
          and l.credit_note_id = p_note.id
      ) as l using (line_number)
      where n.amount_cents is distinct from l.amount_cents
    )
  end
$$;

alter function billing.create_credit_note(uuid, uuid, jsonb, text, text) owner to goldleaves_kernel;
grant execute on function billing.raise_invalid_credit_note(text), billing.read_credit_lines(jsonb),
  billing.all_that_is_left(billing.invoices, numeric), billing.credits_the_same(billing.credit_notes, numeric, jsonb) to goldleaves_kernel;
grant execute on function billing.create_credit_note(uuid, uuid, jsonb, text, text) to platform_admin;
