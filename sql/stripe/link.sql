-- Staff says which organization a customer is: for those that were at Stripe before.

create or replace function stripe.require_id(p_id text, p_what text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  if coalesce(p_id, '') !~ '^[A-Za-z0-9_.@-]{1,255}$' then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_STRIPE_ID: %s is no id that Stripe gives', p_what),
      hint = 'Copy it as Stripe shows it, such as cus_… or price_….';
  end if;
end;
$$;

-- p_is_live: null is what the customer's own events say, else the latest of all. Safe to call twice. What waited for it is applied.
create or replace function stripe.link(p_organization_id uuid, p_customer_id text, p_is_live boolean)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform stripe.require_id(p_customer_id, 'customer_id');
  -- First, as whoever applies an event of it does.
  perform stripe.lock_customer(p_customer_id);
  if stripe.link_customer(
    p_organization_id, p_customer_id,
    coalesce(
      p_is_live,
      (select e.is_live from stripe.webhook_events e where e.customer_id = p_customer_id order by e.received_at desc limit 1),
      (select e.is_live from stripe.webhook_events e order by e.received_at desc limit 1),
      false
    ),
    billing.author()
  ) then
    perform stripe.apply_waiting(p_customer_id, true);
  end if;
end;
$$;

alter function stripe.link(uuid, text, boolean) owner to goldleaves_kernel;
grant execute on function stripe.require_id(text, text) to goldleaves_kernel;
grant execute on function stripe.link(uuid, text, boolean) to platform_admin;
