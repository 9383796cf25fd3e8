-- What a customer has at Stripe (Entitlements): a feature under its lookup key becomes an override of the organization, and is taken back when it
-- is listed no longer. What staff has set, or taken away, stays theirs.

create or replace function stripe.override_author()
returns text
language sql
immutable
set search_path = ''
as $$ select 'stripe' $$;

-- The features of the last list that was whole, and what lists have named since that did not say all.
create or replace function stripe.features_of(p_customer_id text)
returns text[]
language plpgsql
stable
set search_path = ''
as $$
declare
  v_event record;
  v_features text[] := '{}';
begin
  for v_event in
    select (e.facts ->> 'is_partial')::boolean as is_partial, array(select jsonb_array_elements_text(e.facts -> 'features')) as features
    from stripe.webhook_events e
    where e.object_id = p_customer_id
      and e.type = 'entitlements.active_entitlement_summary.updated'
      and e.status <> 'ignored'
      and e.facts ? 'features'
    -- Of several in one second those that are not whole come last: what is had is not taken away by chance.
    order by e.created_at, (e.facts ->> 'is_partial')::boolean, e.id
  loop
    v_features := case when v_event.is_partial then v_features else '{}' end || v_event.features;
  end loop;
  return array(select distinct f.feature from unnest(v_features) as f (feature) order by 1);
end;
$$;

-- Returns whether the organization has others than before.
create or replace function stripe.renew_entitlements(p_organization_id uuid)
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  -- One customer after the other may have been the organization's.
  v_features text[] := array(
    select distinct f.feature
    from stripe.customers c
    cross join lateral unnest(stripe.features_of(c.id)) as f (feature)
    where c.organization_id = p_organization_id
      and c.deleted_at is null
  );
  v_is_other boolean;
begin
  delete from stripe.entitlements e
  where e.organization_id = p_organization_id
    and e.feature <> all (v_features);
  v_is_other := found;
  insert into stripe.entitlements (organization_id, feature)
  select p_organization_id, f.feature
  from unnest(v_features) as f (feature)
  on conflict do nothing;
  v_is_other := v_is_other or found;

  delete from billing.entitlement_overrides v
  where v.organization_id = p_organization_id
    and v.created_by = stripe.override_author()
    and v.feature <> all (v_features);
  -- Other lookup keys than ours name nothing here; and what is limited is so by the plan, or by staff. What staff has set says nothing any more
  -- once it is expired.
  insert into billing.entitlement_overrides as v (organization_id, feature, kind, reason, created_by)
  select p_organization_id, f.feature, 'boolean', 'Stripe: active entitlement', stripe.override_author()
  from unnest(v_features) as f (feature)
  where f.feature ~ '^[a-z0-9_.]{1,64}$'
    and not exists (select from billing.plan_features p where p.feature = f.feature and p.kind <> 'boolean')
  on conflict (organization_id, feature) do update
  set
    is_granted = true, kind = excluded.kind, limit_value = null, enforcement = excluded.enforcement, meter_code = null, expires_at = null,
    reason = excluded.reason, created_at = excluded.created_at, created_by = excluded.created_by
  where v.expires_at <= clock_timestamp();
  return v_is_other;
end;
$$;

create or replace function stripe.apply_entitlements(p_event stripe.webhook_events, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_organization_id uuid := stripe.organization_of(p_event.customer_id);
begin
  if v_organization_id is null then
    outcome := 'unlinked';
    message := format('customer %s is no organization''s yet', coalesce(p_event.customer_id, '(none)'));
    return;
  end if;
  outcome := case when stripe.renew_entitlements(v_organization_id) then 'applied' else 'stale' end;
  message := case outcome when 'stale' then 'a later event was applied before, or it says nothing new' else 'entitlements' end;
end;
$$;

grant execute on function stripe.override_author(), stripe.features_of(text), stripe.renew_entitlements(uuid),
  stripe.apply_entitlements(stripe.webhook_events) to goldleaves_kernel;
