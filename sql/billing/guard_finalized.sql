-- A finalized period is immutable, whoever asks, a superuser at psql included: its row, its invoice and the invoice's lines.
-- (Its events are guarded in metering/guard_usage_events.sql.)

create or replace function billing.raise_locked(p_what text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('BILLING_PERIOD_LOCKED: %s', p_what),
    hint = 'A finalized period never changes. Correct it on the open period.';
end;
$$;

create or replace function billing.guard_billing_periods()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  if old.status = 'finalized' then
    -- Putting an earlier period before the first one changes what it follows, and nothing of it.
    if tg_op = 'DELETE' or old.previous_end is not null
      or (new.organization_id, new.period_start, new.period_end, new.timezone, new.status, new.finalized_at, new.created_at)
        is distinct from (old.organization_id, old.period_start, old.period_end, old.timezone, old.status, old.finalized_at, old.created_at)
    then
      perform billing.raise_locked(format('the period that starts at %s is finalized', old.period_start));
    end if;
  end if;
  return coalesce(new, old);
end;
$$;

create or replace function billing.guard_invoices()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if tg_op <> 'INSERT' or exists (
    select from billing.billing_periods p
    where p.organization_id = new.organization_id
      and p.period_start = new.period_start
      and p.status = 'finalized'
  ) then
    perform billing.raise_locked(format('invoice %s is issued', coalesce(old.number, new.number, old.id::text, new.id::text)));
  end if;
  return new;
end;
$$;

create or replace function billing.guard_invoice_lines()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if tg_op <> 'INSERT' or exists (
    select from billing.invoices i
    join billing.billing_periods p using (organization_id, period_start)
    where i.organization_id = new.organization_id
      and i.id = new.invoice_id
      and p.status = 'finalized'
  ) then
    perform billing.raise_locked('the lines of an issued invoice do not change');
  end if;
  return new;
end;
$$;

create or replace function billing.refuse_truncate()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform billing.raise_locked(format('%I.%I is never truncated', tg_table_schema, tg_table_name));
  return null;
end;
$$;

-- For views of several tables: with it nobody's missing right is what is told, and not that the view cannot be written.
create or replace function billing.refuse_write()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform billing.raise_locked(format('%I.%I is never written', tg_table_schema, tg_table_name));
  return null;
end;
$$;

alter function billing.guard_invoices() owner to goldleaves_kernel;
alter function billing.guard_invoice_lines() owner to goldleaves_kernel;
grant execute on function billing.raise_locked(text) to goldleaves_kernel;

create or replace trigger guard before update or delete on billing.billing_periods
  for each row execute function billing.guard_billing_periods();
create or replace trigger guard before insert or update or delete on billing.invoices
  for each row execute function billing.guard_invoices();
create or replace trigger guard before insert or update or delete on billing.invoice_lines
  for each row execute function billing.guard_invoice_lines();
create or replace trigger guard_truncate before truncate on billing.billing_periods
  for each statement execute function billing.refuse_truncate();
create or replace trigger guard_truncate before truncate on billing.invoices
  for each statement execute function billing.refuse_truncate();
create or replace trigger guard_truncate before truncate on billing.invoice_lines
  for each statement execute function billing.refuse_truncate();
