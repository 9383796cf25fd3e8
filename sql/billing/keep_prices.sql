-- A price never changes and never goes, whoever asks: invoices were made by it. Another one takes its place from a moment on. What is wrong
-- with a new one is said in a sentence (billing.fault_of_price), to staff and in a direct SQL session alike.

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
declare
  v_before billing.prices;
  v_fault record;
  v_tiers record;
begin
  if tg_op <> 'INSERT' then
    raise exception using
      errcode = 'PT409',
      message = 'PRICE_FIXED: a price never changes',
      hint = 'Make another one with create_price: it takes its place from its effective_from on.';
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'PT500',
      message = 'ISOLATION_LEVEL: this needs READ COMMITTED, else a price that is made meanwhile stays unseen';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.prices', 0));
  -- The order in which they were made, whatever the clock does.
  new.created_at := greatest(clock_timestamp(), (select max(p.created_at) + interval '1 microsecond' from billing.prices p));
  new.effective_from := coalesce(new.effective_from, new.created_at);
  new.included_quantity := coalesce(trim_scale(new.included_quantity), 0);
  new.unit_amount_cents := trim_scale(new.unit_amount_cents);
  new.package_size := trim_scale(new.package_size);
  new.minimum_cents := trim_scale(new.minimum_cents);
  new.maximum_cents := trim_scale(new.maximum_cents);
  -- As groups keep it, so that a long one finds its usage.
  new.dimension_value := metering.kept_value(new.dimension_value);

  v_fault := billing.fault_of_price(new);
  if v_fault.problem is null and new.tiers is not null then
    v_tiers := billing.read_tiers(new.tiers);
    new.tiers := v_tiers.tiers;
    v_fault.problem := v_tiers.problem;
    v_fault.hint := 'As in [{"up_to": 100, "unit_amount_cents": 2}, {"up_to": null, "unit_amount_cents": 1.5}].';
  end if;
  if v_fault.problem is null then
    v_before := billing.price_before(new);
    if new.model <> 'none' and billing.terms_of(v_before) - 'price_id' = billing.terms_of(new) - 'price_id' then
      raise exception using
        errcode = 'PT409',
        message = format('PRICE_EXISTS: %s has the same price since %s', billing.subject_of(new), v_before.effective_from),
        hint = format('It is price %s, and counts already.', v_before.id);
    end if;
    v_fault := billing.fault_beside_others(new, v_before, new.created_at);
  end if;
  if v_fault.problem is not null then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_PRICE: ' || v_fault.problem,
      hint = coalesce(v_fault.hint, 'The columns of GET /prices say what each is for. Amounts are in minor units: 25 are 0.25 usd, and 25 jpy.');
  end if;
  return new;
end;
$$;

alter function billing.guard_prices() owner to goldleaves_kernel;
grant execute on function billing.share_prices() to goldleaves_kernel;

create or replace trigger guard before insert or update or delete on billing.prices
  for each row execute function billing.guard_prices();
create or replace trigger guard_truncate before truncate on billing.prices
  for each statement execute function billing.refuse_truncate();
