-- Credit notes, and what is on the balance.
create view api.credit_notes with (security_invoker) as
select
  id,
  organization_id,
  billing_entity_type,
  billing_entity_id,
  number,
  invoice_id,
  currency,
  reason,
  issued_by,
  reference,
  subtotal_cents,
  tax_cents,
  total_cents,
  to_balance_cents,
  issued_at
from billing.credit_notes;

comment on view api.credit_notes is 'What was taken off invoices after they were issued. An invoice never changes: a mistake on it is mended by '
  'a credit note.';
comment on column api.credit_notes.id is 'What credit_note_lines.credit_note_id and refunds.credit_note_id point at.';
comment on column api.credit_notes.organization_id is 'Whose invoice it is for.';
comment on column api.credit_notes.billing_entity_type is 'Who paid, or has to: user or organization, as in the invoice.';
comment on column api.credit_notes.billing_entity_id is 'The id of the user or of the organization.';
comment on column api.credit_notes.number is 'Year and a count without gaps in the organization and year, such as CN-2026-0001.';
comment on column api.credit_notes.invoice_id is 'The invoice that it mends.';
comment on column api.credit_notes.currency is 'That of the invoice, such as usd.';
comment on column api.credit_notes.reason is 'Why it was issued.';
comment on column api.credit_notes.issued_by is 'Who issued it: the subject of the token, or the role of the database session.';
comment on column api.credit_notes.reference is 'What it was called by whoever issued it: a retry with the same one makes no second note.';
comment on column api.credit_notes.subtotal_cents is 'The sum of its lines.';
comment on column api.credit_notes.tax_cents is 'The tax in proportion: of an inclusive one what the total contains, of another one what was '
  'added to subtotal_cents.';
comment on column api.credit_notes.total_cents is 'What it takes off, in whole minor units of currency.';
comment on column api.credit_notes.to_balance_cents is 'What of that the invoice had no more to pay: the next invoice of the payer takes it off.';
comment on column api.credit_notes.issued_at is 'When it was issued (UTC).';

create view api.credit_note_lines with (security_invoker) as
select credit_note_id, organization_id, line_number, invoice_id, invoice_line_number, description, amount_cents
from billing.credit_note_lines;

comment on view api.credit_note_lines is 'Lines of credit notes: what each takes off a line of the invoice.';
comment on column api.credit_note_lines.credit_note_id is 'The credit note.';
comment on column api.credit_note_lines.organization_id is 'Whose it is.';
comment on column api.credit_note_lines.line_number is 'From 1, within the credit note.';
comment on column api.credit_note_lines.invoice_id is 'The invoice.';
comment on column api.credit_note_lines.invoice_line_number is 'The line of the invoice.';
comment on column api.credit_note_lines.description is 'What that line is for.';
comment on column api.credit_note_lines.amount_cents is 'What is taken off it, without a tax that is not in the price.';

create view api.balances with (security_invoker) as
select organization_id, billing_entity_type, billing_entity_id, currency, sum(amount_cents) as balance_cents
from billing.balance_entries
group by organization_id, billing_entity_type, billing_entity_id, currency;

create trigger refuse_write instead of insert or update or delete on api.balances
  for each row execute function billing.refuse_write();

comment on view api.balances is 'What payers have in hand: credited after it was paid, or from an invoice below zero. Their next invoice takes '
  'it off.';
comment on column api.balances.organization_id is 'In which organization.';
comment on column api.balances.billing_entity_type is 'Whose it is: user or organization. Never null.';
comment on column api.balances.billing_entity_id is 'The id of the user or of the organization. Never null.';
comment on column api.balances.currency is 'ISO 4217, lowercase, such as usd.';
comment on column api.balances.balance_cents is 'In whole minor units of currency, 0 or more. Never null.';

grant select on api.credit_notes, api.credit_note_lines, api.balances to member, platform_admin;

create function api.create_credit_note(invoice_id uuid, reason text, lines jsonb default null, reference text default null)
returns api.credit_notes
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_id uuid;
begin
  perform tenancy.require_staff('issues credit notes', 'GET /credit_notes lists them.');
  perform tenancy.require_organization();
  select c.id into v_id
  from billing.create_credit_note(
    tenancy.current_org(), create_credit_note.invoice_id, create_credit_note.lines, create_credit_note.reason, create_credit_note.reference
  ) c;
  return (select c from api.credit_notes c where c.organization_id = tenancy.current_org() and c.id = v_id);
end;
$$;

comment on function api.create_credit_note(uuid, text, jsonb, text) is $$Mend an invoice with a credit note

For platform_admin. lines is [{"line_number": 2, "amount_cents": 500}], lines of the invoice of the organization that X-Organization-ID names;
without lines, all that is left of it is credited. Each line gives at most what is left of it, and all together at most what the invoice came
to; tax comes in proportion. It is taken off what the invoice still asks for, and what is more goes to the balance, which the next invoice
takes off. With reference it is safe to call twice: the same one is returned.

Errors: ORGANIZATION_REQUIRED, INVALID_CREDIT_NOTE (400), ROLE_REQUIRED (403), INVOICE_NOT_FOUND (404), CREDIT_TOO_HIGH, REFERENCE_TAKEN,
STATEMENT_NOT_PAYABLE (409).$$;

grant execute on function api.create_credit_note(uuid, text, jsonb, text) to member, service, platform_admin;
