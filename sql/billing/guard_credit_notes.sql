-- What credit notes must not do, whoever writes them: give back more of a line or of an invoice than there is left, or put on the balance
-- what the invoice still asks for. Rows are looked at one by one, under the lock of the ledger; that a note is the sum of its lines, when
-- the transaction commits.

-- The tax in p_subtotal_cents of what an invoice bills before tax: in proportion, rounded half away from zero. A note has what it is for all
-- that was credited by now, less what earlier ones had: so crediting everything, in whatever steps, credits the whole tax.
create or replace function billing.tax_in_proportion(p_subtotal_cents numeric, p_of_subtotal_cents numeric, p_tax_cents numeric)
returns numeric
language sql
immutable
parallel safe
set search_path = ''
as $$ select case when p_tax_cents = 0 then 0 else div(2 * p_tax_cents * p_subtotal_cents + p_of_subtotal_cents, 2 * p_of_subtotal_cents) end $$;

-- What of an invoice was credited by now.
create or replace function billing.credited_of(p_organization_id uuid, p_invoice_id uuid, out subtotal_cents numeric, out tax_cents numeric)
language sql
stable
set search_path = ''
as $$
  select coalesce(sum(c.subtotal_cents), 0), coalesce(sum(c.tax_cents), 0)
  from billing.credit_notes c
  where c.organization_id = p_organization_id
    and c.invoice_id = p_invoice_id
$$;

-- The lines of an invoice that can be credited, and what is left of each. Negative adjustments are not taken back, and tax comes in proportion.
create or replace function billing.creditable_lines(p_organization_id uuid, p_invoice_id uuid)
returns table (line_number integer, description text, left_cents numeric)
language sql
stable
set search_path = ''
as $$
  select
    l.line_number,
    l.description,
    l.amount_cents - coalesce(
      (
        select sum(c.amount_cents)
        from billing.credit_note_lines c
        where c.organization_id = l.organization_id
          and c.invoice_id = l.invoice_id
          and c.invoice_line_number = l.line_number
      ),
      0
    )
  from billing.invoice_lines l
  where l.organization_id = p_organization_id
    and l.invoice_id = p_invoice_id
    and l.kind in ('fee', 'usage', 'adjustment')
    and l.amount_cents > 0
$$;

create or replace function billing.raise_credit_too_high(p_what text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('CREDIT_TOO_HIGH: %s', p_what),
    hint = 'Credit notes take back at most what an invoice billed. GET /credit_note_lines shows what was credited before.';
end;
$$;

-- A note's number and moment are not its writer's to choose: the count has no gap, and goes with time.
create or replace function billing.guard_credit_notes()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_invoice billing.invoices;
  v_settlement record;
  v_number text;
  v_left numeric;
  v_to_balance numeric;
begin
  perform billing.take_ledger_lock(new.organization_id);
  select * into v_invoice from billing.invoices i where i.organization_id = new.organization_id and i.id = new.invoice_id;
  if not found then
    return new;  -- the foreign key says so
  end if;

  perform billing.require_payable(v_invoice);
  new.issued_at := clock_timestamp();
  v_number := billing.next_credit_note_number(new.organization_id, new.issued_at);
  if coalesce(new.number, v_number) <> v_number then
    perform billing.raise_inconsistent(format('the next credit note is %s, not %s', v_number, new.number));
  end if;
  new.number := v_number;

  if new.payer_user_id is distinct from v_invoice.payer_user_id or new.currency <> v_invoice.currency then
    perform billing.raise_inconsistent(format('credit note %s has another payer or currency than invoice %s', v_number, v_invoice.number));
  end if;
  v_left := coalesce(v_invoice.subtotal_cents, v_invoice.total_cents)
    - (select c.subtotal_cents from billing.credited_of(new.organization_id, new.invoice_id) c);
  if new.subtotal_cents > greatest(v_left, 0) then
    perform billing.raise_credit_too_high(
      format(
        'invoice %s has %s left to be credited, not %s', v_invoice.number, trim_scale(greatest(v_left, 0)), new.subtotal_cents
      )
    );
  end if;
  select * into v_settlement from billing.settlement_of(v_invoice);
  v_to_balance := greatest(new.total_cents - v_settlement.remaining_cents - v_settlement.written_off_cents, 0);
  if new.to_balance_cents <> v_to_balance then
    perform billing.raise_inconsistent(
      format('of credit note %s %s go to the balance, not %s', v_number, trim_scale(v_to_balance), new.to_balance_cents)
    );
  end if;
  return new;
end;
$$;

create or replace function billing.next_credit_note_number(p_organization_id uuid, p_at timestamptz)
returns text
language sql
stable
set search_path = ''
as $$
  select format('CN-%s-%s', y.year, lpad(n.next::text, greatest(4, length(n.next::text)), '0'))
  from (
    select to_char(p_at at time zone o.billing_timezone, 'YYYY') as year
    from tenancy.organizations o
    where o.id = p_organization_id
  ) as y,
  lateral (
    select coalesce(max(split_part(c.number, '-', 3)::integer), 0) + 1 as next
    from billing.credit_notes c
    where c.organization_id = p_organization_id
      and c.number like 'CN-' || y.year || '-%'
  ) as n
$$;

create or replace function billing.guard_credit_note_lines()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_left numeric;
begin
  perform billing.take_ledger_lock(new.organization_id);
  select l.left_cents into v_left
  from billing.creditable_lines(new.organization_id, new.invoice_id) l
  where l.line_number = new.invoice_line_number;
  if not found then
    perform billing.raise_inconsistent(format('line %s of the invoice is none that is credited', new.invoice_line_number));
  end if;
  if new.amount_cents > v_left then
    perform billing.raise_credit_too_high(
      format('line %s has %s left to be credited, not %s', new.invoice_line_number, trim_scale(v_left), new.amount_cents)
    );
  end if;
  return new;
end;
$$;

-- When the transaction commits. Of the tax, the sum over all notes of the invoice.
create or replace function billing.check_credit_note()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_note billing.credit_notes;
  v_invoice billing.invoices;
  v_lines record;
  v_credited record;
begin
  select * into strict v_note
  from billing.credit_notes c
  where c.organization_id = new.organization_id
    and c.id = case tg_table_name when 'credit_notes' then to_jsonb(new) ->> 'id' else to_jsonb(new) ->> 'credit_note_id' end::uuid;
  select * into strict v_invoice from billing.invoices i where i.organization_id = v_note.organization_id and i.id = v_note.invoice_id;
  select coalesce(sum(l.amount_cents), 0) as amount_cents, bool_and(l.invoice_id = v_note.invoice_id) as of_the_invoice into v_lines
  from billing.credit_note_lines l
  where l.organization_id = v_note.organization_id
    and l.credit_note_id = v_note.id;
  select * into v_credited from billing.credited_of(v_note.organization_id, v_note.invoice_id);

  if v_lines.amount_cents <> v_note.subtotal_cents or not v_lines.of_the_invoice then
    perform billing.raise_inconsistent(format('credit note %s is not the sum of its lines', v_note.number));
  end if;
  if v_note.total_cents <> v_note.subtotal_cents + (case when v_invoice.tax_inclusive then 0 else v_note.tax_cents end)
    or v_note.tax_cents < 0
    or v_credited.tax_cents <> billing.tax_in_proportion(
      v_credited.subtotal_cents, coalesce(v_invoice.subtotal_cents, v_invoice.total_cents), coalesce(v_invoice.tax_cents, 0)
    )
  then
    perform billing.raise_inconsistent(format('credit note %s has another tax than its part of invoice %s', v_note.number, v_invoice.number));
  end if;
  return null;
end;
$$;

alter function billing.guard_credit_notes() owner to goldleaves_kernel;
alter function billing.guard_credit_note_lines() owner to goldleaves_kernel;
alter function billing.check_credit_note() owner to goldleaves_kernel;
grant execute on function billing.tax_in_proportion(numeric, numeric, numeric), billing.credited_of(uuid, uuid),
  billing.creditable_lines(uuid, uuid), billing.raise_credit_too_high(text), billing.next_credit_note_number(uuid, timestamptz)
  to goldleaves_kernel;

create or replace trigger guard before insert on billing.credit_notes
  for each row execute function billing.guard_credit_notes();
create or replace trigger guard before insert on billing.credit_note_lines
  for each row execute function billing.guard_credit_note_lines();

drop trigger if exists check_sum on billing.credit_notes;
create constraint trigger check_sum after insert on billing.credit_notes deferrable initially deferred
  for each row execute function billing.check_credit_note();
drop trigger if exists check_sum on billing.credit_note_lines;
create constraint trigger check_sum after insert on billing.credit_note_lines deferrable initially deferred
  for each row execute function billing.check_credit_note();
