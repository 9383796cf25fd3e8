-- What the provider's application is told of a subscription: how it is now, as the view billing_subscriptions shows it, what it was before,
-- and what is planned next.
create or replace function billing.tell_subscription(p_organization_id uuid)
returns void
language sql
volatile
set search_path = ''
set timezone = 'UTC'
as $$
  select notifications.enqueue_webhook(
    p_organization_id, 'subscription.changed',
    jsonb_build_object(
      'organization_id', p_organization_id, 'subscription_id', s.id, 'plan', s.plan, 'status', s.status, 'since', s.since, 'reason', s.reason,
      'trial_end', s.trial_end, 'grace_ends_at', s.grace_ends_at, 'has_access', s.has_access, 'has_payment_method', s.has_payment_method,
      'cancel_at', s.cancel_at,
      'previous', case when p.organization_id is not null then jsonb_build_object('plan', p.plan_code, 'status', p.status) end,
      'next', case
        when n.organization_id is not null then jsonb_build_object('plan', n.plan_code, 'status', n.status, 'since', n.starts_at)
      end
    )
  )
  from billing.subscription_of(p_organization_id) s
  left join lateral (
    select b.*
    from billing.subscription_phases b
    where b.organization_id = p_organization_id
      and b.subscription_id = s.id
      and b.starts_at < s.since
    order by b.starts_at desc
    limit 1
  ) as p on true
  left join lateral (
    select a.*
    from billing.subscription_phases a
    where a.organization_id = p_organization_id
      and a.starts_at > s.since
    order by a.starts_at
    limit 1
  ) as n on true
$$;

grant execute on function billing.tell_subscription(uuid) to goldleaves_kernel;
