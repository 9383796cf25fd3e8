-- The ledgers beside invoices: payments, refunds, credit notes with their lines, and the balance. They only grow, whoever asks, a superuser at
-- psql included: a mistake in one is mended by the next entry.

-- Who adds to a ledger of an organization, or issues an invoice that takes from its balance, is alone with that: what is left to pay, to credit
-- or to take is read under this lock, in a later statement. After the period lock where both are taken.
create or replace function billing.take_ledger_lock(p_organization_id uuid)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'PT500',
      message = 'ISOLATION_LEVEL: this needs READ COMMITTED, else what the ledger lock waited for stays unseen';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.ledger.' || p_organization_id, 0));
end;
$$;

create or replace function billing.refuse_ledger_change()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('LEDGER_APPEND_ONLY: %I.%I only grows', tg_table_schema, tg_table_name),
    hint = 'A payment is taken back by a refund, an invoice is corrected by a credit note.';
end;
$$;

-- For entries that contradict an invoice or each other: functions of schema api make none, whoever writes by hand may.
create or replace function billing.raise_inconsistent(p_what text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('LEDGER_INCONSISTENT: %s', p_what),
    hint = 'Use create_credit_note, record_payment and record_refund: they write all that belongs together.';
end;
$$;

-- A reference that somebody gave, without which a retry could count twice.
create or replace function billing.raise_reference_taken(p_reference text, p_what text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('REFERENCE_TAKEN: the reference %s is that of another %s', p_reference, p_what),
    hint = 'A retry says the same as the first attempt. Give what is new a reference of its own.';
end;
$$;

create or replace function billing.raise_no_invoice(p_invoice_id uuid)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT404',
    message = format('INVOICE_NOT_FOUND: there is no invoice %s in this organization', coalesce(p_invoice_id::text, 'null')),
    hint = 'GET /invoices lists them.';
end;
$$;

-- Who is asking, as ledgers name them: the subject of the token, or the role of the database session.
create or replace function billing.author()
returns text
language sql
stable
set search_path = ''
as $$ select coalesce(a.actor ->> 'subject', a.actor_id, session_user::text) from audit.current_actor() a $$;

grant execute on function billing.take_ledger_lock(uuid), billing.raise_inconsistent(text), billing.raise_reference_taken(text, text),
  billing.raise_no_invoice(uuid), billing.author() to goldleaves_kernel;

-- They fire in sessions with session_replication_role = replica as well.
create or replace trigger append_only before update or delete on billing.payments
  for each row execute function billing.refuse_ledger_change();
create or replace trigger append_only_truncate before truncate on billing.payments
  for each statement execute function billing.refuse_ledger_change();
alter table billing.payments enable always trigger append_only, enable always trigger append_only_truncate;

create or replace trigger append_only before update or delete on billing.refunds
  for each row execute function billing.refuse_ledger_change();
create or replace trigger append_only_truncate before truncate on billing.refunds
  for each statement execute function billing.refuse_ledger_change();
alter table billing.refunds enable always trigger append_only, enable always trigger append_only_truncate;

create or replace trigger append_only before update or delete on billing.credit_notes
  for each row execute function billing.refuse_ledger_change();
create or replace trigger append_only_truncate before truncate on billing.credit_notes
  for each statement execute function billing.refuse_ledger_change();
alter table billing.credit_notes enable always trigger append_only, enable always trigger append_only_truncate;

create or replace trigger append_only before update or delete on billing.credit_note_lines
  for each row execute function billing.refuse_ledger_change();
create or replace trigger append_only_truncate before truncate on billing.credit_note_lines
  for each statement execute function billing.refuse_ledger_change();
alter table billing.credit_note_lines enable always trigger append_only, enable always trigger append_only_truncate;

create or replace trigger append_only before update or delete on billing.balance_entries
  for each row execute function billing.refuse_ledger_change();
create or replace trigger append_only_truncate before truncate on billing.balance_entries
  for each statement execute function billing.refuse_ledger_change();
alter table billing.balance_entries enable always trigger append_only, enable always trigger append_only_truncate;
