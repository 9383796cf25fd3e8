-- Which organization is which customer at Stripe, and which price which plan: staff says so, for what checkouts do not link by themselves.
create view api.stripe_customers with (security_invoker) as
select organization_id, id, email, has_payment_method, is_live, linked_at, linked_by, deleted_at
from stripe.customers;

comment on view api.stripe_customers is 'Customers at Stripe that an organization is, or was: one that is not deleted at most. For its owners, admins and billing users, and platform_admin.';
comment on column api.stripe_customers.organization_id is 'Whose it is, for ever.';
comment on column api.stripe_customers.id is 'Id of the customer at Stripe (cus_…).';
comment on column api.stripe_customers.email is 'Where Stripe sends bills; null: nobody has said.';
comment on column api.stripe_customers.has_payment_method is 'Whether the customer has a payment method that Stripe charges by default.';
comment on column api.stripe_customers.is_live is 'Whether it is of live mode; false: of test mode, where no money moves.';
comment on column api.stripe_customers.linked_at is 'When it was linked (UTC).';
comment on column api.stripe_customers.linked_by is 'By what: checkout, metadata of the customer, or who said so.';
comment on column api.stripe_customers.deleted_at is 'When it was deleted at Stripe (UTC); null: it is there.';

grant select on api.stripe_customers to member, platform_admin;

create function api.link_stripe_customer(customer_id text, live boolean default null)
returns api.stripe_customers
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('links customers at Stripe', 'A checkout does it by itself.');
  perform tenancy.require_organization();
  perform stripe.link(tenancy.current_org(), link_stripe_customer.customer_id, link_stripe_customer.live);
  return (
    select c
    from api.stripe_customers c
    where c.organization_id = tenancy.current_org()
      and c.id = link_stripe_customer.customer_id
  );
end;
$$;

comment on function api.link_stripe_customer(text, boolean) is $$Say which customer at Stripe an organization is

For platform_admin, of the organization that X-Organization-ID names: for customers that were at Stripe before. What Stripe has sent of it
until now is applied. Without live it is of the mode that its webhooks are of. A customer is of one organization, for ever, and an organization
has one at a time. Called again, it changes nothing. Returns it as stripe_customers shows it.

Errors: INVALID_STRIPE_ID, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), ORGANIZATION_NOT_FOUND (404), CUSTOMER_LINKED (409).$$;

create function api.set_stripe_price(plan text, price_id text)
returns table (plan_code text, price text, since timestamptz)
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('says which price at Stripe is which plan', 'GET /plans lists what can be had.');
  perform stripe.set_price(set_stripe_price.plan, set_stripe_price.price_id);
  return query select p.plan, p.price_id, p.since from stripe.prices_of(set_stripe_price.plan) p;
end;
$$;

comment on function api.set_stripe_price(text, text) is $$Say which price at Stripe is which plan

For platform_admin. From then on a checkout of the plan sells at this price, and subscriptions at it are of the plan; prices that were named
before go on being it. STRIPE_PRICE_STARTER, _PRO and _FIRM say the same with each migration run. Webhooks that failed since nothing was known of
the price are tried again. Called again, it changes nothing. Returns the prices of the plan, the one that is sold first.

- plan_code: Code of the plan. Never null.
- price: Id of the price at Stripe (price_…). Never null.
- since: When it was named (UTC). Never null.

Errors: INVALID_STRIPE_ID (400), ROLE_REQUIRED (403), PLAN_NOT_FOUND (404), STRIPE_PRICE_TAKEN (409).$$;

grant execute on function api.link_stripe_customer(text, boolean), api.set_stripe_price(text, text) to member, service, platform_admin;
