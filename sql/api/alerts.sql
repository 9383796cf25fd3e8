-- What an organization is told of: usage alerts, its budget, and what has fired.
create view api.usage_alerts with (security_invoker) as
select id, organization_id, threshold_kind, threshold, meter_code as meter, feature, created_at
from billing.usage_alerts;

comment on view api.usage_alerts is 'What the organization is told of. Each fires once a billing period, into notification_log. 50, 80 and 100 percent of each limit and of the budget are there from the beginning.';
comment on column api.usage_alerts.id is 'What delete_usage_alert takes.';
comment on column api.usage_alerts.organization_id is 'Whose usage it is about.';
comment on column api.usage_alerts.threshold_kind is 'absolute: of a meter so many units, or without meter so much to pay; percent_of_limit: of what a feature allows; percent_of_budget: of the budget.';
comment on column api.usage_alerts.threshold is 'Units of the meter, minor units of the currency, or a percentage: 80 is 80 %.';
comment on column api.usage_alerts.meter is 'Of absolute ones the meter; null: the amount of the period so far, before tax.';
comment on column api.usage_alerts.feature is 'Of percent_of_limit the feature; null: each that has a limit.';
comment on column api.usage_alerts.created_at is 'When it was made (UTC).';

create view api.budgets with (security_invoker) as
select
  b.organization_id,
  b.amount_cents,
  (select o.currency from tenancy.organizations o where o.id = b.organization_id) as currency,
  b.updated_at
from billing.budgets b;

comment on view api.budgets is 'What the organization wants to spend in a billing period, before tax. Nothing stops there: usage alerts tell of it. Without a row there is none.';
comment on column api.budgets.organization_id is 'Whose budget it is.';
comment on column api.budgets.amount_cents is 'In whole minor units of currency.';
comment on column api.budgets.currency is 'ISO 4217, lowercase, such as usd. Never null.';
comment on column api.budgets.updated_at is 'When it was set (UTC).';

create view api.notification_log with (security_invoker) as
select
  id, organization_id, kind, threshold_kind, threshold, meter_code as meter, feature, value, limit_value, unit, period_start, created_at
from notifications.notification_log;

comment on view api.notification_log is 'What has fired, once each.';
comment on column api.notification_log.id is 'Its id.';
comment on column api.notification_log.organization_id is 'Whose usage it is about.';
comment on column api.notification_log.kind is 'usage_alert: a threshold of usage_alerts was crossed; quota_reached: all of a limit is used, which the provider''s application is told as well.';
comment on column api.notification_log.threshold_kind is 'As in usage_alerts.';
comment on column api.notification_log.threshold is 'As in usage_alerts.';
comment on column api.notification_log.meter is 'The meter that reached it; null: feature says what, or it was the amount.';
comment on column api.notification_log.feature is 'The feature of which so much of the limit is used; null: a meter or the amount.';
comment on column api.notification_log.value is 'What was found when it fired: at the threshold, or above it.';
comment on column api.notification_log.limit_value is 'The limit, or the budget, that threshold is a percentage of; null of absolute ones.';
comment on column api.notification_log.unit is 'What value and limit_value are in: the unit of a meter, or a currency, in its minor units; null: the feature itself is counted, such as members.';
comment on column api.notification_log.period_start is 'The billing period that it fired in, once (UTC).';
comment on column api.notification_log.created_at is 'When it fired (UTC).';

grant select on api.usage_alerts, api.budgets, api.notification_log to member, platform_admin;

create function api.create_usage_alert(threshold_kind text, threshold numeric, meter text default null, feature text default null)
returns api.usage_alerts
language sql
volatile
set search_path = ''
as $$
  select a.id, a.organization_id, a.threshold_kind, a.threshold, a.meter_code, a.feature, a.created_at
  from billing.create_usage_alert(
    create_usage_alert.threshold_kind, create_usage_alert.threshold, create_usage_alert.meter, create_usage_alert.feature
  ) a
$$;

comment on function api.create_usage_alert(text, numeric, text, text) is $$Be told when usage or the amount crosses a threshold

For owners, admins and billing users of the organization, and platform_admin. threshold_kind absolute: meter has used so many units in a
billing period, or without meter so many minor units are to be paid for it, fees and late usage included, tax not. percent_of_limit: so much of
what feature allows is used, or without feature of any. percent_of_budget: of what set_budget says. It fires once a period into
notification_log; at once, if the threshold is crossed already. An alert that is there is returned as it is. At most 100. Returns the
alert as usage_alerts shows it.

Errors: INVALID_ALERT, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), METER_NOT_FOUND, FEATURE_NOT_FOUND (404),
TOO_MANY_ALERTS (409).$$;

create function api.delete_usage_alert(id uuid)
returns api.usage_alerts
language sql
volatile
set search_path = ''
as $$
  select a.id, a.organization_id, a.threshold_kind, a.threshold, a.meter_code, a.feature, a.created_at
  from billing.delete_usage_alert(delete_usage_alert.id) a
$$;

comment on function api.delete_usage_alert(uuid) is $$Be told of a threshold no longer

For owners, admins and billing users of the organization, and platform_admin. What has fired stays in notification_log, and does not fire again
in its period when the same alert is made anew. Returns the alert that was.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), ALERT_NOT_FOUND (404).$$;

create function api.set_budget(
  inout amount_cents numeric, out organization_id uuid, out currency text, out updated_at timestamptz
)
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform billing.set_budget(set_budget.amount_cents);
  select b.amount_cents, o.id, o.currency, b.updated_at
  into set_budget.amount_cents, set_budget.organization_id, set_budget.currency, set_budget.updated_at
  from tenancy.organizations o
  left join billing.budgets b on b.organization_id = o.id
  where o.id = tenancy.current_org();
end;
$$;

comment on function api.set_budget(numeric) is $$Say what is to be spent in a billing period at most

For owners, admins and billing users of the organization, and platform_admin. In whole minor units of the organization's currency, before tax;
null takes the budget away. Nothing stops when it is spent: usage alerts of percent_of_budget tell of it, and of another budget
they tell anew.

- amount_cents: In whole minor units of currency; null: there is no budget.
- organization_id: Whose budget it is. Never null.
- currency: ISO 4217, lowercase, such as usd. Never null.
- updated_at: When it was set (UTC); null without a budget.

Errors: INVALID_BUDGET, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403).$$;

grant execute on function api.create_usage_alert(text, numeric, text, text), api.delete_usage_alert(uuid), api.set_budget(numeric)
  to member, platform_admin;
