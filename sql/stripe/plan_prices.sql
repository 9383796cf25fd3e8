-- Which price at Stripe is which plan. The one that was named last is what a checkout sells; those before it go on being the plan for whoever
-- bought at them.

-- Where a price is said to be of a plan, subscriptions at it are: so it stays of that plan once there is one.
create or replace function stripe.set_price(p_plan text, p_price_id text)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_plan_before text;
begin
  perform stripe.require_id(p_price_id, 'price_id');
  if not exists (select from billing.plans p where p.code = p_plan) then
    perform billing.raise_no_plan(p_plan);
  end if;
  insert into stripe.plan_prices (price_id, plan_code) values (p_price_id, p_plan) on conflict do nothing;
  if not found then
    select p.plan_code into v_plan_before from stripe.plan_prices p where p.price_id = p_price_id for update;
    if v_plan_before <> p_plan and exists (select from stripe.subscriptions s where s.price_id = p_price_id) then
      raise exception using
        errcode = 'PT409',
        message = format('STRIPE_PRICE_TAKEN: price %s is of plan %s, and subscriptions were made at it', p_price_id, v_plan_before),
        hint = 'Make another price at Stripe.';
    elsif v_plan_before = p_plan and stripe.price_of(p_plan) = p_price_id then
      return;
    end if;
    update stripe.plan_prices p set plan_code = p_plan, created_at = clock_timestamp() where p.price_id = p_price_id;
  end if;
  -- Events that could not be applied, maybe since nothing was known of this price.
  update stripe.webhook_events e
  set status = 'failed', attempts = 0, next_attempt_at = clock_timestamp()
  where e.status in ('failed', 'dead')
    and e.message like 'STRIPE\_UNKNOWN:%';
end;
$$;

-- STRIPE_PRICE_STARTER and its like: {"starter": "price_…"}, with every migration run. Whoever has set one sells at that one.
create or replace function stripe.set_plan_prices(p_prices jsonb)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_price record;
begin
  for v_price in
    select p.value as id, min(p.key) as plan, count(*) as plans from jsonb_each_text(p_prices) p where p.value is not null group by p.value
  loop
    if v_price.plans > 1 then
      raise exception using
        errcode = 'PT409',
        message = format('STRIPE_PRICE_TAKEN: price %s is set for two plans', v_price.id),
        hint = 'Give each STRIPE_PRICE_… a price of its own.';
    end if;
    perform stripe.set_price(v_price.plan, v_price.id);
  end loop;
end;
$$;

create or replace function stripe.prices_of(p_plan text)
returns table (plan text, price_id text, since timestamptz)
language sql
stable
security definer
set search_path = ''
as $$
  select p.plan_code, p.price_id, p.created_at
  from stripe.plan_prices p
  where p_plan is null
    or p.plan_code = p_plan
  order by p.plan_code, p.created_at desc, p.price_id
$$;

alter function stripe.set_price(text, text) owner to goldleaves_kernel;
alter function stripe.set_plan_prices(jsonb) owner to goldleaves_kernel;
alter function stripe.prices_of(text) owner to goldleaves_kernel;
grant execute on function stripe.set_price(text, text), stripe.prices_of(text) to platform_admin;
