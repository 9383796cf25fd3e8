-- An organization has one currency: its prices, invoices and balance are in it. It is set before the first invoice and stays from then on,
-- whoever asks. A change shares the period lock, as usage does: it is there when a period closes, or it sees the invoice.
create or replace function billing.keep_currency()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if not exists (select from billing.currencies c where c.code = new.currency) then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_CURRENCY: there is no currency %s', coalesce(left(new.currency, 80), 'null')),
      hint = 'It is an ISO 4217 code in lower case, such as usd: GET /currencies lists them.';
  end if;
  if tg_op = 'INSERT' then
    return new;
  end if;

  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'PT500',
      message = 'ISOLATION_LEVEL: this needs READ COMMITTED, else an invoice that is made meanwhile stays unseen';
  end if;
  perform billing.share_period_locks(array[new.id]);
  if exists (select from billing.invoices i where i.organization_id = new.id) then
    raise exception using
      errcode = 'PT409',
      message = format('CURRENCY_FIXED: the organization has invoices in %s, and stays with it', old.currency),
      hint = 'Found another organization for another currency.';
  end if;
  return new;
end;
$$;

alter function billing.keep_currency() owner to goldleaves_kernel;

create or replace trigger keep_currency_inserted before insert on tenancy.organizations
  for each row execute function billing.keep_currency();
create or replace trigger keep_currency before update of currency on tenancy.organizations
  for each row when (old.currency is distinct from new.currency) execute function billing.keep_currency();
