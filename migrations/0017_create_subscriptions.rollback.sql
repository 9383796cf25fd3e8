-- What was billed by subscriptions means nothing to the version before: only while there are none does it go back.
set local role goldleaves_owner;
alter table billing.subscription_phases no force row level security;
alter table billing.entitlement_overrides no force row level security;
do $$
begin
  if exists (select from billing.subscription_phases) or exists (select from billing.entitlement_overrides) then
    raise exception 'there are subscriptions or overrides of entitlements, which the version before does not know'
      using hint = 'Restore a backup instead.';
  end if;
end
$$;
drop table notifications.webhook_messages;
drop table notifications.notification_log;
drop schema notifications;
drop table billing.alert_queue;
drop table billing.usage_alerts;
drop table billing.budgets;
drop table billing.quota_reservations;
drop table billing.quota_counters;
drop table billing.entitlement_overrides;
alter table billing.plan_features drop column meter_code, drop column enforcement;
drop table billing.subscription_phases;
drop table billing.subscriptions;
drop table billing.defaults;
reset role;
