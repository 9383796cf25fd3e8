-- What links a customer to an organization, and what becomes of it.

-- Of a checkout that we began, or that says in its metadata whose it is.
create or replace function stripe.apply_checkout(p_event stripe.webhook_events, p_waits boolean, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_named text := p_event.payload #>> '{data,object,metadata,organization_id}';
  v_organization_id uuid := coalesce(
    (select s.organization_id from stripe.checkout_sessions s where s.id = p_event.object_id),
    case when tenancy.is_uuid(v_named) then v_named::uuid end
  );
begin
  if v_organization_id is null then
    outcome := 'ignored';
    message := 'no checkout of ours, and its metadata names no organization';
    return;
  elsif p_event.customer_id is null then
    outcome := 'ignored';
    message := 'the checkout has no customer';
    return;
  end if;
  outcome := 'applied';
  message := format('customer %s is linked', p_event.customer_id);
  if stripe.link_customer(v_organization_id, p_event.customer_id, p_event.is_live, 'checkout') then
    perform stripe.apply_waiting(p_event.customer_id, p_waits);
  end if;
end;
$$;

-- What is known of a customer. The last word counts: that of a deletion, and else of the latest event.
create or replace function stripe.customer_facts_now(p_id text, out facts jsonb, out event_id text)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_second record;
  v_i integer;
begin
  facts := '{}';
  for v_second in
    select
      e.created_at as at, e.type, array_agg(e.id order by e.id) as ids, array_agg(e.facts - '_previous' order by e.id) as facts,
      array_agg(e.facts -> '_previous' order by e.id) as previous
    from stripe.webhook_events e
    where e.object_id = p_id
      and e.type in ('customer.created', 'customer.updated', 'customer.deleted')
      and e.status <> 'ignored'
    group by e.created_at, e.type
    order by e.type = 'customer.deleted', e.created_at, e.type = 'customer.updated'
  loop
    foreach v_i in array (stripe.order_of_ties(facts, v_second.facts, v_second.previous)).sequence loop
      facts := facts || v_second.facts[v_i];
      event_id := v_second.ids[v_i];
    end loop;
    if v_second.type = 'customer.deleted' then
      facts := facts || jsonb_build_object('deleted_at', v_second.at);
    end if;
  end loop;
end;
$$;

create or replace function stripe.apply_customer(p_event stripe.webhook_events, p_waits boolean, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_organization_id uuid := stripe.organization_of(p_event.customer_id);
  v_named text := p_event.facts ->> 'organization_id';
  v_facts jsonb;
  v_is_last boolean;
begin
  if v_organization_id is null and tenancy.is_uuid(v_named) and p_event.type <> 'customer.deleted' then
    v_organization_id := v_named::uuid;
    perform stripe.link_customer(v_organization_id, p_event.customer_id, p_event.is_live, 'metadata');
    perform stripe.apply_waiting(p_event.customer_id, p_waits);
  end if;
  if v_organization_id is null then
    outcome := 'unlinked';
    message := format('customer %s is no organization''s yet', coalesce(p_event.customer_id, '(none)'));
    return;
  end if;
  select f.facts, f.event_id = p_event.id into v_facts, v_is_last from stripe.customer_facts_now(p_event.object_id) f;
  update stripe.customers c
  set
    email = case when v_facts ? 'email' then v_facts ->> 'email' else c.email end,
    has_payment_method = coalesce((v_facts ->> 'has_payment_method')::boolean, c.has_payment_method),
    deleted_at = coalesce((v_facts ->> 'deleted_at')::timestamptz, c.deleted_at)
  where c.organization_id = v_organization_id
    and c.id = p_event.customer_id
    and (c.email, c.has_payment_method, c.deleted_at) is distinct from (
      case when v_facts ? 'email' then v_facts ->> 'email' else c.email end,
      coalesce((v_facts ->> 'has_payment_method')::boolean, c.has_payment_method),
      coalesce((v_facts ->> 'deleted_at')::timestamptz, c.deleted_at)
    );
  -- What a trial ends in depends on whether there is something to charge.
  if found and exists (select from stripe.subscriptions s where s.customer_id = p_event.customer_id and s.organization_id = v_organization_id) then
    perform stripe.renew_timeline(v_organization_id, p_waits);
  end if;
  if p_event.type = 'customer.deleted' then
    -- What a customer had that is gone.
    perform stripe.renew_entitlements(v_organization_id);
  end if;
  outcome := case when v_is_last then 'applied' else 'stale' end;
  message := case outcome when 'stale' then 'a later event was applied before' else 'customer' end;
end;
$$;

grant execute on function stripe.apply_checkout(stripe.webhook_events, boolean), stripe.customer_facts_now(text),
  stripe.apply_customer(stripe.webhook_events, boolean)
  to goldleaves_kernel;
