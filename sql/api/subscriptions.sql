-- Subscriptions: what an organization is on, what it was, and what is planned. The provider's backend writes them, since it knows who has paid.
create view api.billing_subscriptions with (security_invoker) as
select
  f.id, o.organization_id, f.plan, f.status, f.since, f.reason, f.started_at, f.trial_end, f.current_period_start, f.current_period_end,
  f.cancel_at, f.next_plan, f.next_plan_at, f.grace_ends_at, f.has_access, f.has_payment_method, f.created_at
from (select distinct s.organization_id from billing.subscriptions s) as o
cross join lateral billing.subscription_of(o.organization_id) f;

create trigger refuse_write instead of insert or update or delete on api.billing_subscriptions
  for each row execute function billing.refuse_write();

comment on view api.billing_subscriptions is 'The subscription of an organization as it is now, or the last one that was canceled: at most one. An organization that never had one has no row, and the plan that organizations.plan says.';
comment on column api.billing_subscriptions.id is 'Its id. Never null.';
comment on column api.billing_subscriptions.organization_id is 'Whose it is.';
comment on column api.billing_subscriptions.plan is 'Code of the plan that it is for. Never null.';
comment on column api.billing_subscriptions.status is 'trialing (usage costs nothing), active, past_due (a payment failed), paused, incomplete (begun with nothing to charge) or canceled. Never null.';
comment on column api.billing_subscriptions.since is 'Since when plan and status are what they are (UTC). Never null.';
comment on column api.billing_subscriptions.reason is 'Why: what whoever canceled it said, or such as trial ended, payment failed, plan changed; null when nobody said.';
comment on column api.billing_subscriptions.started_at is 'When it began (UTC). Never null.';
comment on column api.billing_subscriptions.trial_end is 'When its trial ends, or ended (UTC); null: it has none.';
comment on column api.billing_subscriptions.current_period_start is 'First moment of the billing period of now (UTC); null when it is canceled.';
comment on column api.billing_subscriptions.current_period_end is 'First moment of the next one (UTC); null when it is canceled.';
comment on column api.billing_subscriptions.cancel_at is 'When it will be canceled, as was agreed (UTC); null: it goes on.';
comment on column api.billing_subscriptions.next_plan is 'Code of the plan that it changes to at next_plan_at, as was agreed; null: it stays.';
comment on column api.billing_subscriptions.next_plan_at is 'When next_plan counts (UTC).';
comment on column api.billing_subscriptions.grace_ends_at is 'Until when who is past_due keeps access (UTC).';
comment on column api.billing_subscriptions.has_access is 'Whether what the plan offers may be used now: trialing, active, or past_due before grace_ends_at. Never null.';
comment on column api.billing_subscriptions.has_payment_method is 'Whether there is something to charge: without it a trial ends in a pause. Never null.';
comment on column api.billing_subscriptions.created_at is 'When it was recorded (UTC). Never null.';

create view api.subscription_phases with (security_invoker) as
select
  f.organization_id, f.starts_at,
  (
    select min(n.starts_at)
    from billing.subscription_phases n
    where n.organization_id = f.organization_id
      and n.starts_at > f.starts_at
  ) as ends_at,
  f.subscription_id, f.plan_code as plan, f.status, f.grace_ends_at, f.reason, f.made_by, f.made_at
from billing.subscription_phases f
where isfinite(f.starts_at);

create trigger refuse_write instead of insert or update or delete on api.subscription_phases
  for each row execute function billing.refuse_write();

comment on view api.subscription_phases is 'The history of subscriptions, and what is planned: phases, each of which counts until the next one begins. What has begun never changes.';
comment on column api.subscription_phases.organization_id is 'Whose it is.';
comment on column api.subscription_phases.starts_at is 'When it begins (UTC): usage of that moment belongs to it. It may lie ahead, and then it is planned.';
comment on column api.subscription_phases.ends_at is 'When the next one begins (UTC); null: it is the last one.';
comment on column api.subscription_phases.subscription_id is 'The subscription that it is a phase of; null: a plan without one, as set_plan gives it.';
comment on column api.subscription_phases.plan is 'Code of the plan.';
comment on column api.subscription_phases.status is 'trialing, active, past_due, paused, incomplete or canceled: see billing_subscriptions.';
comment on column api.subscription_phases.grace_ends_at is 'Until when who is past_due keeps access (UTC).';
comment on column api.subscription_phases.reason is 'Why it began; null when nobody said.';
comment on column api.subscription_phases.made_by is 'Who brought it about: the id of the user, the subject of a token of staff, or the role of the database session.';
comment on column api.subscription_phases.made_at is 'When it was written (UTC).';

grant select on api.billing_subscriptions, api.subscription_phases to member, platform_admin;

create function api.start_subscription(
  plan text, trial_days integer default null, has_payment_method boolean default false, "at" timestamptz default null
)
returns api.billing_subscriptions
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('starts subscriptions', 'GET /billing_subscriptions shows the one there is.');
  perform tenancy.require_organization();
  perform billing.start_subscription(
    tenancy.current_org(), start_subscription.plan, start_subscription.trial_days, start_subscription.has_payment_method, start_subscription.at
  );
  return (select s from api.billing_subscriptions s where s.organization_id = tenancy.current_org());
end;
$$;

comment on function api.start_subscription(text, integer, boolean, timestamptz) is $$Start a subscription

For platform_admin, of the organization that X-Organization-ID names. It begins with a trial of trial_days (0 to 365, 0 is none); without
trial_days of TRIAL_DAYS, or none where the organization had a subscription before. With has_payment_method there is something to charge, and the
trial ends as active; without, it is paused then, and what has no trial is incomplete until set_payment_method. Without at it begins now;
a moment that is past is for subscriptions that you bring along: it comes after all that there was, and nothing of it is finalized.
Called again, it is refused with SUBSCRIPTION_EXISTS, and changes nothing. Returns the subscription as billing_subscriptions shows it.

Errors: INVALID_SUBSCRIPTION, ORGANIZATION_REQUIRED, TIME_OUT_OF_RANGE (400), ROLE_REQUIRED (403), ORGANIZATION_NOT_FOUND, PLAN_NOT_FOUND (404),
BILLING_PERIOD_LOCKED, SUBSCRIPTION_CHANGED, SUBSCRIPTION_EXISTS (409), PERIOD_BUSY (503).$$;

create function api.change_subscription(plan text, at_period_end boolean default false, "at" timestamptz default null)
returns api.billing_subscriptions
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('changes subscriptions', 'GET /plans lists what there is; ask the provider''s staff.');
  perform tenancy.require_organization();
  perform billing.change_subscription(
    tenancy.current_org(), change_subscription.plan, change_subscription.at_period_end, change_subscription.at
  );
  return (select s from api.billing_subscriptions s where s.organization_id = tenancy.current_org());
end;
$$;

comment on function api.change_subscription(text, boolean, timestamptz) is $$Change the plan of a subscription

For platform_admin, of the organization that X-Organization-ID names. Now, or at a moment that is past; a trial goes on with the other plan.
With at_period_end when the billing period ends, or the trial. A change that was planned before is off, and with the plan of now that is
all that it does. A cancellation that is planned stays. Called again, it changes nothing. Returns the subscription as billing_subscriptions
shows it.

Errors: INVALID_SUBSCRIPTION, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), NO_SUBSCRIPTION, PLAN_NOT_FOUND (404),
BILLING_PERIOD_LOCKED, SUBSCRIPTION_CHANGED, SUBSCRIPTION_ENDING (409), PERIOD_BUSY (503).$$;

create function api.cancel_subscription(at_period_end boolean default true, reason text default null, "at" timestamptz default null)
returns api.billing_subscriptions
language plpgsql
volatile
set search_path = ''
as $$
begin
  if current_user = 'member' and coalesce(cancel_subscription.at_period_end, true) and cancel_subscription.at is null then
    perform billing.cancel_own_subscription(cancel_subscription.reason);
  else
    perform tenancy.require_staff(
      'cancels subscriptions for others, or at once', 'An owner of the organization has it end with its period: send at_period_end true, or leave it out.'
    );
    perform tenancy.require_organization();
    perform billing.cancel_subscription(
      tenancy.current_org(), cancel_subscription.at_period_end, cancel_subscription.reason, cancel_subscription.at
    );
  end if;
  return (select s from api.billing_subscriptions s where s.organization_id = tenancy.current_org());
end;
$$;

comment on function api.cancel_subscription(boolean, text, timestamptz) is $$Cancel a subscription

For platform_admin, of the organization that X-Organization-ID names, and for its owners at the end of the period alone. It ends when the
billing period ends, or the trial, and until then resume_subscription takes that back. With at_period_end false it ends now, or at a
moment that is past, for ever. reason has up to 200 characters. Called again, a planned cancellation stays as it is; once it is canceled
there is NO_SUBSCRIPTION. Returns the subscription as billing_subscriptions shows it.

Errors: INVALID_SUBSCRIPTION, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), NO_SUBSCRIPTION (404), BILLING_PERIOD_LOCKED,
SUBSCRIPTION_CHANGED (409), PERIOD_BUSY (503).$$;

create function api.resume_subscription("at" timestamptz default null)
returns api.billing_subscriptions
language plpgsql
volatile
set search_path = ''
as $$
begin
  if current_user = 'member' and resume_subscription.at is null then
    perform billing.resume_own_subscription();
  else
    perform tenancy.require_staff(
      'resumes subscriptions for others, or at a moment', 'An owner of the organization takes back a cancellation that is planned: leave at out.'
    );
    perform tenancy.require_organization();
    perform billing.resume_subscription(tenancy.current_org(), resume_subscription.at);
  end if;
  return (select s from api.billing_subscriptions s where s.organization_id = tenancy.current_org());
end;
$$;

comment on function api.resume_subscription(timestamptz) is $$Have a subscription go on

For platform_admin, of the organization that X-Organization-ID names: takes back a cancellation that is planned, and makes active what is
paused, past_due or incomplete; a trial that was paused goes on until its trial_end. What was paused or is incomplete needs a payment method.
For a payment that came use mark_paid, which takes no cancellation back. Owners take back a cancellation that one of them planned, and nothing else. Called again, it
changes nothing. Returns the subscription as billing_subscriptions shows it.

Errors: INVALID_SUBSCRIPTION, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), NO_SUBSCRIPTION (404), BILLING_PERIOD_LOCKED,
PAYMENT_METHOD_REQUIRED, SUBSCRIPTION_CHANGED (409), PERIOD_BUSY (503).$$;

create function api.pause_subscription("at" timestamptz default null)
returns api.billing_subscriptions
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('pauses subscriptions');
  perform tenancy.require_organization();
  perform billing.pause_subscription(tenancy.current_org(), pause_subscription.at);
  return (select s from api.billing_subscriptions s where s.organization_id = tenancy.current_org());
end;
$$;

comment on function api.pause_subscription(timestamptz) is $$Pause a subscription

For platform_admin, of the organization that X-Organization-ID names. Until resume_subscription it has no access, no fee is due, and usage costs
what it costs everybody. What is planned for later stays. What is paused or incomplete stays as it is, so it may be called again.
Returns the subscription as billing_subscriptions shows it.

Errors: INVALID_SUBSCRIPTION, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), NO_SUBSCRIPTION (404), BILLING_PERIOD_LOCKED,
SUBSCRIPTION_CHANGED (409), PERIOD_BUSY (503).$$;

create function api.mark_past_due(grace_days integer default null, "at" timestamptz default null)
returns api.billing_subscriptions
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('says that a payment failed');
  perform tenancy.require_organization();
  perform billing.mark_past_due(tenancy.current_org(), mark_past_due.grace_days, mark_past_due.at);
  return (select s from api.billing_subscriptions s where s.organization_id = tenancy.current_org());
end;
$$;

comment on function api.mark_past_due(integer, timestamptz) is $$Say that a payment of a subscription failed

For platform_admin, of the organization that X-Organization-ID names. It keeps access for grace_days (0 to 365; without, PAST_DUE_GRACE_DAYS),
and goes on costing what it did, until mark_paid, or cancel_subscription. Called again, the grace is not extended. Returns the subscription
as billing_subscriptions shows it.

Errors: INVALID_SUBSCRIPTION, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), NO_SUBSCRIPTION (404), BILLING_PERIOD_LOCKED,
SUBSCRIPTION_CHANGED, SUBSCRIPTION_NOT_ACTIVE (409), PERIOD_BUSY (503).$$;

create function api.mark_paid("at" timestamptz default null)
returns api.billing_subscriptions
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('says that a payment came');
  perform tenancy.require_organization();
  perform billing.mark_paid(tenancy.current_org(), mark_paid.at);
  return (select s from api.billing_subscriptions s where s.organization_id = tenancy.current_org());
end;
$$;

comment on function api.mark_paid(timestamptz) is $$Say that the payment of a subscription came after all

For platform_admin, of the organization that X-Organization-ID names: what is past_due or incomplete is active. What is planned stays, a
cancellation too. Called again, it changes nothing. Returns the subscription as billing_subscriptions shows it.

Errors: INVALID_SUBSCRIPTION, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), NO_SUBSCRIPTION (404), BILLING_PERIOD_LOCKED,
SUBSCRIPTION_CHANGED, SUBSCRIPTION_NOT_ACTIVE (409), PERIOD_BUSY (503).$$;

create function api.set_payment_method(has_payment_method boolean)
returns api.billing_subscriptions
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('says whether there is something to charge');
  perform tenancy.require_organization();
  perform billing.set_payment_method(tenancy.current_org(), set_payment_method.has_payment_method);
  return (select s from api.billing_subscriptions s where s.organization_id = tenancy.current_org());
end;
$$;

comment on function api.set_payment_method(boolean) is $$Say whether there is something to charge

For platform_admin, of the organization that X-Organization-ID names. With a payment method a trial goes on as active when it ends, and what
waited for one begins: what is incomplete, or was paused when its trial ended. Without, the trial will end in a pause. Called again, it
changes nothing. Returns the subscription as billing_subscriptions shows it.

Errors: INVALID_SUBSCRIPTION, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), NO_SUBSCRIPTION (404), PERIOD_BUSY (503).$$;

grant execute on function
  api.start_subscription(text, integer, boolean, timestamptz), api.change_subscription(text, boolean, timestamptz),
  api.cancel_subscription(boolean, text, timestamptz), api.resume_subscription(timestamptz), api.pause_subscription(timestamptz),
  api.mark_past_due(integer, timestamptz), api.mark_paid(timestamptz), api.set_payment_method(boolean) to member, service, platform_admin;
