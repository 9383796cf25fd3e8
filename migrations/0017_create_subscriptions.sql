-- Subscriptions and what follows from them: entitlements, quotas, alerts, and messages to the provider's application.
create schema notifications authorization goldleaves_owner;

set local role goldleaves_owner;

-- TRIAL_DAYS and PAST_DUE_GRACE_DAYS, as the last migration run had them.
create table billing.defaults (
  only_row boolean primary key default true check (only_row),
  trial_days integer not null default 14 check (trial_days between 0 and 365),
  past_due_grace_days integer not null default 7 check (past_due_grace_days between 0 and 365)
);
insert into billing.defaults default values;

create table billing.subscriptions (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  trial_end timestamptz,
  -- Whether there is something to charge: without it a trial ends in a pause.
  has_payment_method boolean not null default false,
  created_at timestamptz not null default clock_timestamp(),
  created_by text not null,
  primary key (organization_id, id)
);

-- What an organization is on, as a timeline: each row counts until the next one begins, so at each moment there is one plan and one status.
-- Rows that lie ahead are what is planned, as the end of a trial or a cancellation. An organization without any has the plan that
-- tenancy.organizations says, for all that is not finalized.
create table billing.subscription_phases (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  starts_at timestamptz not null,
  -- Null: a plan without a subscription, as staff set it.
  subscription_id uuid,
  status text not null check (status in ('trialing', 'active', 'past_due', 'paused', 'canceled', 'incomplete')),
  plan_code text not null references billing.plans (code) on delete restrict,
  -- Until then who is past due keeps access.
  grace_ends_at timestamptz,
  reason text check (length(btrim(reason)) between 1 and 200),
  made_at timestamptz not null default clock_timestamp(),
  made_by text not null,
  -- When it was told: tenancy.organizations follows, and the provider's application is sent a message.
  announced_at timestamptz,
  primary key (organization_id, starts_at),
  foreign key (organization_id, subscription_id) references billing.subscriptions (organization_id, id) on delete cascade,
  check ((status = 'past_due') = (grace_ends_at is not null)),
  check (subscription_id is not null or status = 'active')
);
create index subscription_phases_of_subscription on billing.subscription_phases (organization_id, subscription_id);
create index subscription_phases_plan on billing.subscription_phases (plan_code);
create index subscription_phases_to_announce on billing.subscription_phases (starts_at) where announced_at is null;
comment on index billing.subscription_phases_to_announce is
  'goldleaves lint key_without_organization: the scheduler looks for phases of all organizations';
comment on constraint subscription_phases_plan_code_fkey on billing.subscription_phases is
  'goldleaves lint reference_without_organization: plans are the same for everybody, and no tenant writes it';

-- hard: an act beyond the limit is refused. soft: it is told of, and goes on.
alter table billing.plan_features
  add column enforcement text not null default 'soft' check (enforcement in ('hard', 'soft')),
  -- What uses it up. Without one only what reserve_quota() was asked for does, or the rows there are of members, workspaces and API keys.
  add column meter_code text references metering.meters (code) on delete restrict,
  add check (kind <> 'boolean' or meter_code is null);
create index plan_features_meter on billing.plan_features (meter_code);

-- What an organization has other than its plan says, until it expires. Stands in for the plan's feature as a whole.
create table billing.entitlement_overrides (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  feature text not null check (feature ~ '^[a-z0-9_.]{1,64}$'),
  -- false: it does not have it, whatever the plan says.
  is_granted boolean not null default true,
  kind text not null check (kind in ('boolean', 'limit_per_period', 'limit')),
  limit_value numeric check (limit_value >= 0),
  enforcement text not null default 'soft' check (enforcement in ('hard', 'soft')),
  meter_code text references metering.meters (code) on delete restrict,
  expires_at timestamptz,
  reason text check (length(btrim(reason)) between 1 and 1000),
  created_at timestamptz not null default clock_timestamp(),
  created_by text not null,
  primary key (organization_id, feature),
  check (kind <> 'boolean' or limit_value is null and meter_code is null)
);
create index entitlement_overrides_meter on billing.entitlement_overrides (meter_code);
comment on constraint entitlement_overrides_meter_code_fkey on billing.entitlement_overrides is
  'goldleaves lint reference_without_organization: meters are the same for everybody, and no tenant writes it';

-- What was granted of a quota. Usage may be metered later than it was granted, so what is used is the greater one of both.
create table billing.quota_counters (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  feature text not null,
  -- Of a limit at any time -infinity.
  period_start timestamptz not null,
  granted numeric not null default 0 check (granted >= 0),
  -- When what was metered was last looked at for it: the gateway does not ask with each request.
  measured_at timestamptz,
  -- What the last transaction that reserved has not metered yet: that much its own events need not be granted again.
  reserved numeric not null default 0,
  reserved_xid xid8,
  primary key (organization_id, feature, period_start)
) with (fillfactor = 70);

-- What was reserved under a reference, so that a retry reserves nothing more, and what is given back of it.
create table billing.quota_reservations (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  feature text not null,
  reference text not null check (length(reference) between 1 and 200),
  period_start timestamptz not null,
  amount numeric not null check (amount > 0),
  released numeric not null default 0 check (released >= 0 and released <= amount),
  created_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, feature, reference)
);

-- What an organization wants to spend in a billing period, in minor units. Nothing stops there: alerts tell of it.
create table billing.budgets (
  organization_id uuid primary key references tenancy.organizations (id) on delete cascade,
  amount_cents numeric not null check (amount_cents > 0 and scale(amount_cents) = 0),
  updated_at timestamptz not null default now()
);

create table billing.usage_alerts (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  -- absolute: of a meter its units, without one the amount in minor units. percent_of_limit: of a feature, without one of each that has a limit.
  threshold_kind text not null check (threshold_kind in ('absolute', 'percent_of_limit', 'percent_of_budget')),
  threshold numeric not null check (threshold > 0),
  meter_code text references metering.meters (code) on delete restrict,
  feature text check (feature ~ '^[a-z0-9_.]{1,64}$'),
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  unique nulls not distinct (organization_id, threshold_kind, threshold, meter_code, feature),
  check (meter_code is null or threshold_kind = 'absolute'),
  check (feature is null or threshold_kind = 'percent_of_limit')
);
create index usage_alerts_meter on billing.usage_alerts (meter_code);
comment on constraint usage_alerts_meter_code_fkey on billing.usage_alerts is
  'goldleaves lint reference_without_organization: meters are the same for everybody, and no tenant writes it';

-- Whose usage, plan, budget or alerts changed since their alerts were looked at. Rows are only added, and removed by whoever has looked: nobody
-- who adds one waits for anybody, as roll_up() must not. So there is no foreign key either.
create table billing.alert_queue (
  organization_id uuid not null,
  id uuid not null default ops.new_id(),
  -- Null: the current one.
  period_start timestamptz,
  due_at timestamptz not null default now(),
  -- How often looking at them has failed.
  attempts integer not null default 0,
  primary key (organization_id, id)
);
create index alert_queue_due on billing.alert_queue (due_at);
comment on index billing.alert_queue_due is
  'goldleaves lint key_without_organization: the sidecar looks at alerts of all organizations';

grant usage on schema notifications to goldleaves_kernel, member, platform_admin, sidecar;

-- What was to be told, once each. Whoever delivers it comes later.
create table notifications.notification_log (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  -- quota_reached: what the provider's application is told, whatever alerts there are.
  kind text not null check (kind in ('usage_alert', 'quota_reached')),
  -- Of which meter, or which feature; without either of the amount.
  meter_code text,
  feature text,
  threshold_kind text not null check (threshold_kind in ('absolute', 'percent_of_limit', 'percent_of_budget')),
  threshold numeric not null,
  period_start timestamptz not null,
  -- What was found when it fired, and the limit or budget that it is a part of.
  value numeric not null,
  limit_value numeric,
  -- What value and limit are in: the unit of a meter, or a currency, whose minor units they are. Null: the feature is what is counted.
  unit text,
  created_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, id),
  -- Once a period and threshold; of another limit it is another threshold.
  unique nulls not distinct (organization_id, period_start, kind, threshold_kind, threshold, meter_code, feature, limit_value)
);

-- Messages to the provider's application, signed and sent by the sidecar as the Standard Webhooks specification says.
create table notifications.webhook_messages (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  type text not null check (type ~ '^[a-z_]+(\.[a-z_]+)+$'),
  payload jsonb not null,
  status text not null default 'pending' check (status in ('pending', 'delivered', 'dead')),
  attempts integer not null default 0,
  -- While it is being sent: when somebody else would take over.
  next_attempt_at timestamptz not null default clock_timestamp(),
  last_status integer,
  last_error text,
  created_at timestamptz not null default clock_timestamp(),
  delivered_at timestamptz,
  primary key (organization_id, id),
  check ((status = 'delivered') = (delivered_at is not null))
);
create index webhook_messages_due on notifications.webhook_messages (next_attempt_at, created_at) where status = 'pending';
comment on index notifications.webhook_messages_due is
  'goldleaves lint key_without_organization: the sidecar sends messages of all organizations';
create index webhook_messages_delivered on notifications.webhook_messages (delivered_at) where status = 'delivered';
comment on index notifications.webhook_messages_delivered is
  'goldleaves lint key_without_organization: maintenance deletes what was delivered long ago';
create index webhook_messages_dead on notifications.webhook_messages (created_at) where status = 'dead';
comment on index notifications.webhook_messages_dead is
  'goldleaves lint key_without_organization: staff looks for what could not be delivered to the provider';

-- Row security holds for the owner too, once the policies are there.
alter table tenancy.organizations no force row level security;
insert into billing.usage_alerts (organization_id, threshold_kind, threshold)
select o.id, k.threshold_kind, t.threshold
from tenancy.organizations o
cross join (values ('percent_of_limit'), ('percent_of_budget')) as k (threshold_kind)
cross join (values (50), (80), (100)) as t (threshold)
where o.kind <> 'platform';
alter table tenancy.organizations force row level security;

comment on table billing.defaults is
  'goldleaves lint shared_table_without_row_security: only the kernel reads it';

reset role;
