-- A price never changes and never goes, whoever asks: invoices were made by it. Another one takes its place from a moment on.

-- Finalization shares this lock, and who makes a price takes it alone: prices are either seen by all that is rated now, or later than it.
create or replace function billing.share_prices()
returns void
language sql
volatile
set search_path = ''
as $$ select pg_catalog.pg_advisory_xact_lock_shared(pg_catalog.hashtextextended('goldleaves.prices', 0)) $$;

create or replace function billing.guard_prices()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if tg_op <> 'INSERT' then
    raise exception using
      errcode = 'PT409',
      message = 'PRICE_FIXED: a price never changes',
      hint = 'Make another one with create_price: it takes its place from its effective_from on.';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.prices', 0));
  new.created_at := clock_timestamp();
  return new;
end;
$$;

alter function billing.guard_prices() owner to goldleaves_kernel;
grant execute on function billing.share_prices() to goldleaves_kernel;

create or replace trigger guard before insert or update or delete on billing.prices
  for each row execute function billing.guard_prices();
create or replace trigger guard_truncate before truncate on billing.prices
  for each statement execute function billing.refuse_truncate();
