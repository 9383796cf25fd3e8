-- What the audit log is about: people and what they may do, money, and policies. In the order in which requests lock these tables,
-- since a deploy locks them here. Names that people choose, and e-mails, stay outside the chain.
do $$
begin
  perform audit.watch('tenancy.api_keys', 'api_key', '{id}',
    p_personal => '{name}', p_hidden => '{key_sha256}', p_quiet => '{last_used_at}', p_platform => '{"kind": "provider"}');
  perform audit.watch('tenancy.invitations', 'invitation', '{id}', p_personal => '{email}', p_hidden => '{code_sha256}');
  perform audit.watch('tenancy.memberships', 'membership', '{user_id}');
  perform audit.watch('tenancy.organizations', 'organization', '{id}', p_organization => 'id', p_personal => '{name,slug}');
  perform audit.watch('tenancy.workspaces', 'workspace', '{id}', p_personal => '{name}');
  -- Periods are made while usage is recorded, which waits for nobody: only what becomes of them is told.
  perform audit.watch('billing.billing_periods', 'billing_period', '{period_start}', p_events => 'update of status or delete');
  perform audit.watch('billing.invoices', 'invoice', '{id}');
  perform audit.watch('billing.prices', 'price', '{meter_code,currency,effective_from}', p_organization => null);
  perform audit.watch('metering.meters', 'meter', '{code}', p_organization => null);
  perform audit.watch('metering.operation_weights', 'operation_weight', '{operation,effective_from}');
end
$$;
