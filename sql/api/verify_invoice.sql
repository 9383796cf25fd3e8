-- Proving an invoice, for whom it concerns.
create function api.verify_invoice(invoice_id text)
returns jsonb
language sql
stable
set search_path = ''
as $$ select billing.verdict_of_invoice(invoice_id) $$;

comment on function api.verify_invoice(text) is $$Prove an invoice: derive it anew from its events, and say what differs

For owners, admins and billing users of the organization, and for platform_admin. What is stored is compared with its digest and with the audit
log; the events of the period are counted anew, one by one, and so are rollups, versions of meters, weights, prices, lines and totals. The
answer is an object: verified (true or false), invoice (its id), number, digest (null where the invoice is older than digests: then its
quantities and amounts are all that can be verified), events (how many the invoice rests on), and differences, each an object of what (digest,
audit log, total, balance, ledger, period, number, usage, hour, rollup, event, meter, weight, attribution, line, price, payer), expected (what was
issued or recorded), found (what there is now), and detail, a sentence. It takes seconds for a million events.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), INVOICE_NOT_FOUND (404).$$;

grant execute on function api.verify_invoice(text) to member, platform_admin;
