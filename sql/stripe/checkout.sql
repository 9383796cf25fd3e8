-- Checkouts and the portal, which an owner asks the sidecar for. What may be bought is decided here, and what Stripe is to make of it is put
-- together here; the sidecar sends it, and tells what came of it. Stripe is asked outside of any transaction.

-- By the membership as it is now: what the sidecar remembers of people is a moment old.
create or replace function stripe.require_owner(p_user_id uuid, p_organization_id uuid, p_does text)
returns void
language plpgsql
stable
set search_path = ''
as $$
declare
  v_role text;
begin
  select m.role into v_role
  from tenancy.memberships m
  where m.organization_id = p_organization_id
    and m.user_id = p_user_id;
  if v_role is null then
    raise exception using
      errcode = 'PT403',
      message = 'NOT_A_MEMBER: you are not a member of this organization',
      hint = 'GET /organizations without X-Organization-ID lists yours.';
  elsif v_role <> 'owner' then
    raise exception using
      errcode = 'PT403',
      message = format('ROLE_REQUIRED: only an owner of the organization %s', p_does),
      hint = 'GET /memberships says who is owner.';
  end if;
end;
$$;

-- The price that a plan is sold at: the newest one that was said to be its.
create or replace function stripe.price_of(p_plan text)
returns text
language sql
stable
set search_path = ''
as $$
  select p.price_id from stripe.plan_prices p where p.plan_code = p_plan order by p.created_at desc, p.price_id limit 1
$$;

-- The customer that an organization is at Stripe now.
create or replace function stripe.customer_of(p_organization_id uuid)
returns text
language sql
stable
set search_path = ''
as $$
  select c.id from stripe.customers c where c.organization_id = p_organization_id and c.deleted_at is null
$$;

create or replace function stripe.raise_subscribed(p_problem text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = 'SUBSCRIPTION_EXISTS: ' || p_problem,
    hint = 'Change or cancel it in the portal: GET /api/billing/portal_link.';
end;
$$;

-- Where bills go: to the address that the organization has given for it, else to whoever buys.
create or replace function stripe.email_for(p_user_id uuid, p_organization_id uuid)
returns text
language sql
stable
set search_path = ''
as $$
  select e.email
  from (
    select 1 as n, b.email
    from billing.billing_profiles b
    where b.organization_id = p_organization_id
      and b.billing_entity_type = 'organization'
    union all
    select 2, u.email from tenancy.users u where u.id = p_user_id
  ) as e
  where e.email ~ '^[^@[:space:][:cntrl:]]+@[^@[:space:][:cntrl:]]+$'
    and length(e.email) <= 512
  order by e.n
  limit 1
$$;

-- What of a session decides whether it is the same that was asked for before, and what Stripe is sent. A second subscription has no trial.
create or replace function stripe.checkout_params(p_user_id uuid, p_organization_id uuid, p_plan text, p_coupon text, p_app_url text)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'mode', 'subscription',
    'line_items', jsonb_build_array(jsonb_build_object('price', stripe.price_of(p_plan), 'quantity', 1)),
    'client_reference_id', p_organization_id,
    'metadata', jsonb_build_object('organization_id', p_organization_id, 'plan', p_plan),
    'subscription_data', jsonb_build_object(
      'metadata', jsonb_build_object('organization_id', p_organization_id, 'plan', p_plan),
      'trial_period_days', case
        when not exists (select from billing.subscriptions s where s.organization_id = p_organization_id)
          then (select nullif(d.trial_days, 0) from billing.defaults d)
      end
    ),
    'customer', stripe.customer_of(p_organization_id),
    'customer_email', case when stripe.customer_of(p_organization_id) is null then stripe.email_for(p_user_id, p_organization_id) end,
    -- Stripe takes one or the other.
    'allow_promotion_codes', case when p_coupon is null then true end,
    'discounts', case
      when p_coupon like 'promo\_%' then jsonb_build_array(jsonb_build_object('promotion_code', p_coupon))
      when p_coupon is not null then jsonb_build_array(jsonb_build_object('coupon', p_coupon))
    end,
    'success_url', p_app_url || '/billing?checkout=done',
    'cancel_url', p_app_url || '/billing?checkout=canceled'
  ))
$$;

-- p_is_configured: whether there is a key of Stripe's; without one only what needs none is looked at, and the answer is null. Else:
-- {"params": what Stripe is sent, "asked": what makes two of them the same: organization, plan, billing period, and a digest of all else,
-- "number": how many of these are over, for all we know}. The last two are the idempotency key.
create or replace function stripe.begin_checkout(
  p_user_id uuid, p_organization_id uuid, p_plan text, p_coupon text, p_app_url text, p_is_configured boolean
)
returns jsonb
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_status text;
  v_params jsonb;
  v_asked text;
begin
  perform stripe.require_owner(p_user_id, p_organization_id, 'buys a plan for it');
  if p_coupon !~ '^[A-Za-z0-9_-]{1,200}$' then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_BODY: coupon is no id of a coupon, or of a promotion code',
      hint = 'Leave it out: a promotion code can be typed into the checkout.';
  end if;
  -- A plan that was agreed with one customer is not for everybody to take.
  if not exists (
    select
    from billing.plans p
    where p.code = p_plan
      and (p.is_public or exists (select from tenancy.organizations o where o.id = p_organization_id and o.plan = p.code))
  ) then
    perform billing.raise_no_plan(p_plan);
  end if;
  select s.status into v_status
  from stripe.subscriptions s
  where s.organization_id = p_organization_id
    and s.status in ('trialing', 'active', 'past_due', 'unpaid', 'paused')
  limit 1;
  if found then
    perform stripe.raise_subscribed(format('the organization has a subscription at Stripe, which is %s', v_status));
  end if;
  if not p_is_configured then
    return null;
  elsif stripe.price_of(p_plan) is null then
    raise exception using
      errcode = 'PT409',
      message = format('STRIPE_PRICE_MISSING: plan %s has no price at Stripe', p_plan),
      hint = 'Operators: set STRIPE_PRICE_STARTER, _PRO or _FIRM and migrate, or call set_stripe_price.';
  end if;

  v_params := stripe.checkout_params(p_user_id, p_organization_id, p_plan, p_coupon, p_app_url);
  v_asked := format(
    '%s:%s:%s:%s', p_organization_id, p_plan,
    (select extract(epoch from f.period_start)::bigint from billing.find_period(p_organization_id, clock_timestamp()) f),
    left(encode(sha256(convert_to(v_params::text, 'UTF8')), 'hex'), 16)
  );
  return jsonb_build_object(
    'params', v_params,
    'asked', v_asked,
    -- The last one may still be open: then Stripe gives it again, under the same key.
    'number', (
      select greatest(count(*) - 1, 0)
      from stripe.checkout_sessions s
      where s.organization_id = p_organization_id
        and s.asked = v_asked
    )
  );
end;
$$;

-- Returns whether it is a new one: under the same key Stripe answers with the session of before, as it was then.
create or replace function stripe.record_checkout(
  p_user_id uuid, p_organization_id uuid, p_session_id text, p_plan text, p_asked text, p_caller jsonb
)
returns boolean
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  insert into stripe.checkout_sessions (organization_id, id, plan_code, created_by, asked)
  values (p_organization_id, p_session_id, p_plan, p_user_id::text, p_asked)
  on conflict do nothing;
  if not found then
    return false;
  end if;
  perform audit.append_for(
    null, p_caller || jsonb_build_object('user_id', p_user_id), p_organization_id, 'checkout.created', 'checkout', p_session_id, null,
    jsonb_build_object('plan', p_plan)
  );
  return true;
end;
$$;

-- Checkouts of the organization that may still be open beside this one, such as of another plan: whoever paid both would have two
-- subscriptions. They are over after a day by themselves.
create or replace function stripe.checkouts_beside(p_organization_id uuid, p_session_id text)
returns setof text
language sql
stable
security definer
set search_path = ''
as $$
  select s.id
  from stripe.checkout_sessions s
  where s.organization_id = p_organization_id
    and s.id <> p_session_id
    and s.created_at > now() - interval '25 hours'
  order by s.created_at desc
  limit 10
$$;

-- For a session that Stripe says is complete: whether its subscription is over, so that another one may be bought. When its webhook is still
-- on its way, nothing is known of it, and it counts as alive: nobody pays twice.
create or replace function stripe.require_ended(p_organization_id uuid, p_subscription_id text)
returns void
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  if not exists (
    select
    from stripe.subscriptions s
    where s.organization_id = p_organization_id
      and s.id = p_subscription_id
      and s.status in ('canceled', 'incomplete_expired')
  ) then
    perform stripe.raise_subscribed('the checkout was completed, and Stripe tells of the subscription in a moment');
  end if;
end;
$$;

-- The customer whose portal is to be opened; null where there is no key to open it with.
create or replace function stripe.begin_portal(p_user_id uuid, p_organization_id uuid, p_is_configured boolean)
returns text
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  perform stripe.require_owner(p_user_id, p_organization_id, 'opens the portal');
  if p_is_configured and stripe.customer_of(p_organization_id) is null then
    raise exception using
      errcode = 'PT404',
      message = 'NO_SUBSCRIPTION: the organization has no subscription at Stripe yet',
      hint = 'POST /api/billing/create_checkout_session begins one.';
  end if;
  return case when p_is_configured then stripe.customer_of(p_organization_id) end;
end;
$$;

create or replace function stripe.record_portal(p_user_id uuid, p_organization_id uuid, p_customer_id text, p_caller jsonb)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  select audit.append_for(
    null, p_caller || jsonb_build_object('user_id', p_user_id), p_organization_id, 'portal.opened', 'stripe_customer', p_customer_id, null, null
  )
$$;

alter function stripe.begin_checkout(uuid, uuid, text, text, text, boolean) owner to goldleaves_kernel;
alter function stripe.record_checkout(uuid, uuid, text, text, text, jsonb) owner to goldleaves_kernel;
alter function stripe.checkouts_beside(uuid, text) owner to goldleaves_kernel;
alter function stripe.require_ended(uuid, text) owner to goldleaves_kernel;
alter function stripe.begin_portal(uuid, uuid, boolean) owner to goldleaves_kernel;
alter function stripe.record_portal(uuid, uuid, text, jsonb) owner to goldleaves_kernel;
grant execute on function stripe.require_owner(uuid, uuid, text), stripe.price_of(text), stripe.customer_of(uuid), stripe.raise_subscribed(text),
  stripe.email_for(uuid, uuid), stripe.checkout_params(uuid, uuid, text, text, text) to goldleaves_kernel;
grant execute on function stripe.begin_checkout(uuid, uuid, text, text, text, boolean),
  stripe.record_checkout(uuid, uuid, text, text, text, jsonb), stripe.checkouts_beside(uuid, text), stripe.require_ended(uuid, text),
  stripe.begin_portal(uuid, uuid, boolean), stripe.record_portal(uuid, uuid, text, jsonb) to sidecar;
