-- What the audit log is about: people and what they may do, money, and policies. In the order in which requests lock these tables,
-- since a deploy locks them here. Names that people choose, and e-mails, stay outside the chain.
do $$
begin
  -- What a webhook touches first. Who is whose customer decides who is billed.
  perform audit.watch('stripe.customers', 'stripe_customer', '{id}', p_personal => '{email}');
  perform audit.watch('tenancy.api_keys', 'api_key', '{id}',
    p_personal => '{name}', p_hidden => '{key_sha256}', p_quiet => '{last_used_at}', p_platform => '{"kind": "provider"}');
  perform audit.watch('tenancy.invitations', 'invitation', '{id}', p_personal => '{email}', p_hidden => '{code_sha256}');
  perform audit.watch('tenancy.memberships', 'membership', '{user_id}');
  perform audit.watch('tenancy.organizations', 'organization', '{id}', p_organization => 'id', p_personal => '{name,slug}');
  perform audit.watch('tenancy.workspaces', 'workspace', '{id}', p_personal => '{name}');
  -- Periods are made while usage is recorded, which waits for nobody: only what becomes of them is told.
  perform audit.watch('billing.billing_periods', 'billing_period', '{period_start}', p_events => 'update of status or delete');
  -- Its digest stands for what it rests on, and for the addresses.
  perform audit.watch('billing.invoices', 'invoice', '{id}', p_personal => '{billing_profile}', p_hidden => '{facts}');
  perform audit.watch('billing.payments', 'payment', '{id}');
  perform audit.watch('billing.credit_notes', 'credit_note', '{id}');
  perform audit.watch('billing.credit_note_lines', 'credit_note_line', '{credit_note_id,line_number}');
  perform audit.watch('billing.refunds', 'refund', '{id}');
  perform audit.watch('billing.balance_entries', 'balance_entry', '{id}');
  perform audit.watch('billing.billing_profiles', 'billing_profile', '{billing_entity_type}',
    p_personal => '{legal_name,address,country,email,tax_id}', p_quiet => '{updated_at}');
  perform audit.watch('billing.billing_terms', 'billing_terms', '{organization_id}', p_quiet => '{updated_at}');
  perform audit.watch('billing.budgets', 'budget', '{organization_id}', p_quiet => '{updated_at}');
  perform audit.watch('billing.subscriptions', 'subscription', '{id}');
  -- announced_at says that it was told, and changes nothing.
  perform audit.watch('billing.subscription_phases', 'subscription_phase', '{starts_at}', p_quiet => '{announced_at}');
  perform audit.watch('billing.entitlement_overrides', 'entitlement_override', '{feature}');
  perform audit.watch('billing.plans', 'plan', '{code}', p_organization => null);
  perform audit.watch('billing.plan_features', 'plan_feature', '{plan_code,feature}', p_organization => null);
  perform audit.watch('billing.prices', 'price', '{id}', p_organization => null);
  perform audit.watch('stripe.plan_prices', 'stripe_price', '{price_id}', p_organization => null);
  perform audit.watch('stripe.meters', 'stripe_meter', '{meter_code}', p_organization => null);
  perform audit.watch('metering.meters', 'meter', '{code}', p_organization => null);
  perform audit.watch('metering.operation_weights', 'operation_weight', '{operation,effective_from}');
end
$$;
