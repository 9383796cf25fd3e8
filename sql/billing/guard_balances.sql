-- The balance of a payer is never below zero, and each entry of it has a source that says the same: an invoice that took from it or was
-- below zero, a credit note, a refund; never a statement, which Stripe settles. Whoever writes them; looked at when the transaction commits,
-- since source and entry are two rows.

create or replace function billing.guard_balance_entries()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform billing.take_ledger_lock(new.organization_id);
  new.recorded_at := clock_timestamp();
  return new;
end;
$$;

create or replace function billing.check_balance_entry()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_source record;
begin
  case new.kind
    when 'applied', 'negative_invoice' then
      select
        i.payer_user_id, i.currency,
        case new.kind when 'applied' then - i.balance_applied_cents else - least(i.total_cents, 0) end as amount_cents
      into v_source
      from billing.invoices i
      where i.organization_id = new.organization_id and i.id = new.invoice_id and i.kind = 'invoice';
    when 'credit_note' then
      select c.payer_user_id, c.currency, c.to_balance_cents as amount_cents into v_source
      from billing.credit_notes c
      where c.organization_id = new.organization_id and c.id = new.credit_note_id;
    when 'refund' then
      select c.payer_user_id, c.currency, - r.amount_cents as amount_cents into v_source
      from billing.refunds r
      join billing.credit_notes c on c.organization_id = r.organization_id and c.id = r.credit_note_id
      where r.organization_id = new.organization_id and r.id = new.refund_id;
  end case;
  if (v_source.payer_user_id, v_source.currency, v_source.amount_cents) is distinct from (new.payer_user_id, new.currency, new.amount_cents) then
    perform billing.raise_inconsistent(format('a balance entry of kind %s says something else than what it comes from', new.kind));
  end if;
  if billing.balance_of(new.organization_id, new.payer_user_id, new.currency) < 0 then
    perform billing.raise_inconsistent('the balance is never below zero');
  end if;
  return null;
end;
$$;

-- The other way round: its argument is the kind of entry that the new row needs.
create or replace function billing.check_has_balance_entry()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if not exists (
    select from billing.balance_entries b
    where b.organization_id = new.organization_id
      and b.kind = tg_argv[0]
      and new.id in (b.invoice_id, b.credit_note_id, b.refund_id)
  ) then
    perform billing.raise_inconsistent(format('%s %s has no balance entry', rtrim(tg_table_name, 's'), new.id));
  end if;
  return null;
end;
$$;

alter function billing.guard_balance_entries() owner to goldleaves_kernel;
alter function billing.check_balance_entry() owner to goldleaves_kernel;
alter function billing.check_has_balance_entry() owner to goldleaves_kernel;

create or replace trigger guard before insert on billing.balance_entries
  for each row execute function billing.guard_balance_entries();

drop trigger if exists check_source on billing.balance_entries;
create constraint trigger check_source after insert on billing.balance_entries deferrable initially deferred
  for each row execute function billing.check_balance_entry();

drop trigger if exists check_applied on billing.invoices;
create constraint trigger check_applied after insert on billing.invoices deferrable initially deferred
  for each row when (new.balance_applied_cents <> 0) execute function billing.check_has_balance_entry('applied');
drop trigger if exists check_negative on billing.invoices;
create constraint trigger check_negative after insert on billing.invoices deferrable initially deferred
  for each row when (new.total_cents < 0 and new.kind = 'invoice') execute function billing.check_has_balance_entry('negative_invoice');
drop trigger if exists check_balance on billing.credit_notes;
create constraint trigger check_balance after insert on billing.credit_notes deferrable initially deferred
  for each row when (new.to_balance_cents <> 0) execute function billing.check_has_balance_entry('credit_note');
drop trigger if exists check_balance on billing.refunds;
create constraint trigger check_balance after insert on billing.refunds deferrable initially deferred
  for each row when (new.credit_note_id is not null) execute function billing.check_has_balance_entry('refund');
