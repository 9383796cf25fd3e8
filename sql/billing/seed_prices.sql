-- USAGE_RATE_CENTS only seeds: a meter that has a price of any kind, plan or currency, or had one that was withdrawn, keeps what was said of it.
-- Runs as the migrator, with every migration run.
create or replace function billing.seed_prices(p_unit_amount_cents numeric)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents)
  select m.code, 'usd', timestamptz '2000-01-01 00:00+00', p_unit_amount_cents
  from metering.meters m
  where m.code in ('api.request', 'doc.upload', 'doc.processed')
    and not exists (select from billing.prices p where p.meter_code = m.code)
$$;

alter function billing.seed_prices(numeric) owner to goldleaves_kernel;
