-- Which organization a customer at Stripe is. Only what the provider has said links them: its staff, a checkout that we began, or metadata that
-- only its secret key writes. What a payment link or a pricing table carries along (client_reference_id) is anybody's word.

create or replace function stripe.organization_of(p_customer_id text)
returns uuid
language sql
stable
set search_path = ''
as $$ select c.organization_id from stripe.customers c where c.id = p_customer_id $$;

-- Safe to call twice. Returns whether it is new. Who was linked stays so: one customer is of one organization, for ever.
create or replace function stripe.link_customer(p_organization_id uuid, p_customer_id text, p_is_live boolean, p_by text)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_linked uuid := stripe.organization_of(p_customer_id);
begin
  if v_linked = p_organization_id then
    return false;
  elsif v_linked is not null then
    raise exception using
      errcode = 'PT409',
      message = format('CUSTOMER_LINKED: customer %s is another organization''s', left(p_customer_id, 80)),
      hint = 'A customer at Stripe is one organization, for ever. Make another customer.';
  elsif p_organization_id = audit.platform() or not exists (select from tenancy.organizations o where o.id = p_organization_id) then
    perform billing.raise_no_organization(p_organization_id);
  end if;
  insert into stripe.customers (organization_id, id, is_live, linked_by)
  values (p_organization_id, p_customer_id, p_is_live, p_by)
  on conflict do nothing;
  if found then
    return true;
  elsif stripe.organization_of(p_customer_id) = p_organization_id then
    return false;
  end if;
  raise exception using
    errcode = 'PT409',
    message = format('CUSTOMER_LINKED: the organization has another customer at Stripe than %s', left(p_customer_id, 80)),
    hint = 'Delete the one that it has at Stripe first: customer.deleted frees it.';
end;
$$;

grant execute on function stripe.organization_of(text), stripe.link_customer(uuid, text, boolean, text) to goldleaves_kernel;
