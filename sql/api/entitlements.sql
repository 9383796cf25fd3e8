-- What an organization may use and how much of it is left, what staff has set for it alone, and quotas for the provider's backend.
create view api.entitlements with (security_invoker) as
select feature, description, kind, limit_value, used, remaining, resets_at, enforcement, meter, is_granted, source, expires_at
from billing.shown_entitlements();

create trigger refuse_write instead of insert or update or delete on api.entitlements
  for each row execute function billing.refuse_write();

comment on view api.entitlements is 'What the organization may use, by its plan or as the provider''s staff has set it: a feature a row. For everybody in it, and API keys with the scope usage:read.';
comment on column api.entitlements.feature is 'What has_feature, require_feature and reserve_quota call it. Never null.';
comment on column api.entitlements.description is 'For people; empty when there is none. Never null.';
comment on column api.entitlements.kind is 'boolean (it is there), limit_per_period (so much in each billing period) or limit (so much at any time). Never null.';
comment on column api.entitlements.limit_value is 'How much; null: without a limit, or of kind boolean.';
comment on column api.entitlements.used is 'How much of it is used: metered, or granted and not metered yet. It may be more than the limit. Null of kind boolean.';
comment on column api.entitlements.remaining is 'How much is left, never below zero; null: without a limit, or of kind boolean.';
comment on column api.entitlements.resets_at is 'When the next billing period begins, in which nothing is used yet (UTC); null where nothing begins anew.';
comment on column api.entitlements.enforcement is 'hard: an act beyond the limit is refused with QUOTA_EXCEEDED; soft: alerts tell of it. Never null.';
comment on column api.entitlements.meter is 'Code of the meter that uses it up; null where none does.';
comment on column api.entitlements.is_granted is 'Whether has_feature says yes: not while the subscription gives no access, where the limit is 0, or where staff has taken it away. Never null.';
comment on column api.entitlements.source is 'plan; or override: staff has set it for this organization. Never null.';
comment on column api.entitlements.expires_at is 'When an override ends, and what the plan says counts again (UTC); null: it does not.';

create view api.entitlement_overrides with (security_invoker) as
select organization_id, feature, is_granted, kind, limit_value, enforcement, meter_code as meter, expires_at, reason, created_by, created_at
from billing.entitlement_overrides;

create trigger refuse_write instead of insert or update or delete on api.entitlement_overrides
  for each row execute function billing.refuse_write();

comment on view api.entitlement_overrides is 'What staff has set for one organization alone, in place of what its plan says of the feature. For its owners, admins and billing users, and platform_admin.';
comment on column api.entitlement_overrides.organization_id is 'Whose it is.';
comment on column api.entitlement_overrides.feature is 'What it is about.';
comment on column api.entitlement_overrides.is_granted is 'false: the organization does not have it, whatever its plan says.';
comment on column api.entitlement_overrides.kind is 'boolean, limit_per_period or limit: see entitlements.';
comment on column api.entitlement_overrides.limit_value is 'How much; null: without a limit.';
comment on column api.entitlement_overrides.enforcement is 'hard or soft: see entitlements.';
comment on column api.entitlement_overrides.meter is 'Code of the meter that uses it up; null where none does.';
comment on column api.entitlement_overrides.expires_at is 'When it counts no more (UTC); null: it stays until it is removed.';
comment on column api.entitlement_overrides.reason is 'Why, as whoever set it said.';
comment on column api.entitlement_overrides.created_by is 'Who set it: the subject of the token, or the role of the database session.';
comment on column api.entitlement_overrides.created_at is 'When it was set as it is now (UTC).';

grant select on api.entitlements, api.entitlement_overrides to member, platform_admin;

create function api.has_feature(feature text)
returns boolean
language sql
stable
set search_path = ''
as $$ select tenancy.has_feature(feature) $$;

comment on function api.has_feature(text) is $$Whether the organization has a feature

For everybody in it. True when its plan, or what staff has set for it alone, offers the feature, with a limit above 0 or without one, and its
subscription gives access: trialing, active, or past_due within the grace. A quota that is used up is a feature all the same. Never null.

Errors: ORGANIZATION_REQUIRED (400).$$;

create function api.set_entitlement(
  feature text,
  kind text default null,
  limit_value numeric default null,
  is_granted boolean default true,
  enforcement text default null,
  meter text default null,
  expires_at timestamptz default null,
  reason text default null
)
returns api.entitlement_overrides
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('sets entitlements', 'GET /entitlements shows what the organization has.');
  perform billing.set_entitlement(
    set_entitlement.feature, set_entitlement.kind, set_entitlement.limit_value, set_entitlement.is_granted, set_entitlement.enforcement,
    set_entitlement.meter, set_entitlement.expires_at, set_entitlement.reason
  );
  return (
    select v
    from api.entitlement_overrides v
    where v.organization_id = tenancy.current_org()
      and v.feature = set_entitlement.feature
  );
end;
$$;

comment on function api.set_entitlement(text, text, numeric, boolean, text, text, timestamptz, text) is $$Give an organization a feature that its plan does not say

For platform_admin, of the organization that X-Organization-ID names. It stands in for the plan's feature as a whole, until expires_at or
until it is removed; one that is there is replaced. kind, enforcement and meter that are left out are what the plan says of the feature, else
boolean, soft and none. limit_value null is without a limit. is_granted false takes the feature away. It gives no access that the
subscription does not give. Returns it as entitlement_overrides shows it.

Errors: INVALID_ENTITLEMENT, INVALID_EXPIRY, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), ORGANIZATION_NOT_FOUND (404).$$;

create function api.remove_entitlement(feature text)
returns api.entitlement_overrides
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_removed api.entitlement_overrides;
begin
  perform tenancy.require_staff('removes entitlements', 'GET /entitlements shows what the organization has.');
  select
    v.organization_id, v.feature, v.is_granted, v.kind, v.limit_value, v.enforcement, v.meter_code, v.expires_at, v.reason, v.created_by, v.created_at
  into v_removed
  from billing.remove_entitlement(remove_entitlement.feature) v;
  return v_removed;
end;
$$;

comment on function api.remove_entitlement(text) is $$Take back what was set for one organization

For platform_admin, of the organization that X-Organization-ID names. What its plan says of the feature counts again.
Returns what was removed, as entitlement_overrides showed it.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), ENTITLEMENT_NOT_FOUND, ORGANIZATION_NOT_FOUND (404).$$;

create function api.reserve_quota(
  inout feature text, n numeric default 1, reference text default null,
  out limit_value numeric, out used numeric, out remaining numeric, out resets_at timestamptz
)
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_backend('reserve quotas');
  select r.limit_value, r.used, r.remaining, r.resets_at into limit_value, used, remaining, resets_at
  from tenancy.reserve_for_backend(reserve_quota.feature, reserve_quota.n, reserve_quota.reference) r;
end;
$$;

comment on function api.reserve_quota(text, numeric, text) is $$Ask whether so much more of a feature may be used

For the provider's backend (role service) and platform_admin, of the organization that X-Organization-ID names, before the act. Granted, it is
used from then on, whether it is metered already or later. Refused is what would be over a hard limit, and nothing is used then.
With reference, which names the act, a retry of the same n reserves nothing more. Not for what the gateway or a metered table asks for by itself.

What is used includes it:
- feature: text. Never null.
- limit_value: numeric. Null: without a limit.
- used: numeric. Null of kind boolean.
- remaining: numeric. Null: without a limit.
- resets_at: timestamp with time zone. When the next period begins (UTC); null where nothing begins anew.

Errors: INVALID_QUANTITY, ORGANIZATION_REQUIRED (400), QUOTA_EXCEEDED (402), FEATURE_REQUIRED, ROLE_REQUIRED (403),
ORGANIZATION_NOT_FOUND (404), RESERVATION_CONFLICT (409).$$;

create function api.release_quota(
  inout feature text, n numeric default null, reference text default null,
  out limit_value numeric, out used numeric, out remaining numeric, out resets_at timestamptz
)
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_backend('release quotas');
  select r.limit_value, r.used, r.remaining, r.resets_at into limit_value, used, remaining, resets_at
  from tenancy.release_for_backend(release_quota.feature, release_quota.n, release_quota.reference) r;
end;
$$;

comment on function api.release_quota(text, numeric, text) is $$Give back what was reserved and did not happen

For the provider's backend (role service) and platform_admin, of the organization that X-Organization-ID names. With reference, what
reserve_quota was told: n is how much of it is given back altogether, without n all of it, so that a retry gives back nothing more. Without
reference n is given back of the running period, each time it is asked. What was metered is used all the same.

What is used then:
- feature: text. Never null.
- limit_value: numeric. Null: without a limit.
- used: numeric. Null where the feature is not there any more.
- remaining: numeric. Null: without a limit.
- resets_at: timestamp with time zone. When the next period begins (UTC); null where nothing begins anew.

Errors: INVALID_QUANTITY, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), ORGANIZATION_NOT_FOUND, RESERVATION_NOT_FOUND (404).$$;

grant execute on function
  api.set_entitlement(text, text, numeric, boolean, text, text, timestamptz, text), api.remove_entitlement(text),
  api.reserve_quota(text, numeric, text), api.release_quota(text, numeric, text)
  to member, service, platform_admin;
grant execute on function api.has_feature(text) to member, platform_admin;
