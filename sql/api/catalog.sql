-- The catalog: what plans offer and what things cost. Everybody reads public plans; the provider's staff makes plans and prices.
create view api.plans with (security_invoker) as
select code, name, description, is_public, position, features, prices
from billing.shown_plans();

create trigger refuse_write instead of insert or update or delete on api.plans
  for each row execute function billing.refuse_write();

comment on view api.plans is 'What can be had: public plans with their features and prices, for everybody, also without a token. platform_admin sees those that are not public too.';
comment on column api.plans.code is 'What organizations.plan and set_plan call it. Never null.';
comment on column api.plans.name is 'What invoices and people call it. Never null.';
comment on column api.plans.description is 'A sentence for people; empty when there is none. Never null.';
comment on column api.plans.is_public is 'Whether everybody may see it. Never null.';
comment on column api.plans.position is 'Its place in a list, from low to high. Never null.';
comment on column api.plans.features is 'What it offers: [{"feature", "kind", "limit_value", "enforcement", "meter", "description"}]. kind: boolean (it is there), limit_per_period (so much in each billing period) or limit (so much at any time); limit_value null: without a limit; enforcement: hard (an act beyond the limit is refused) or soft; meter: what uses it up, null where no meter does. Never null.';
comment on column api.plans.prices is 'What counts for a billing period that begins now, a price a row, of all currencies: [{"meter", "description", "unit", "currency", "model", "unit_amount_cents", "package_size", "tiers", "included_quantity", "minimum_cents", "maximum_cents", "dimension", "dimension_value", "effective_from"}]. meter null: the fee of the plan. Never null.';

grant select on api.plans to anon, member, platform_admin;

create view api.currencies with (security_invoker) as
select code, name, minor_units
from billing.shown_currencies();

create trigger refuse_write instead of insert or update or delete on api.currencies
  for each row execute function billing.refuse_write();

comment on view api.currencies is 'Currencies, by ISO 4217. Every amount that ends in _cents is in minor units of its currency: 100 are 1.00 usd, and 100 jpy.';
comment on column api.currencies.code is 'Lower case, such as usd. Never null.';
comment on column api.currencies.name is 'In English. Never null.';
comment on column api.currencies.minor_units is 'Decimals that the currency has: 2 of usd, 0 of jpy. Never null.';

grant select on api.currencies to anon, member, platform_admin;

create view api.prices with (security_invoker) as
select
  s.id, s.meter, s.plan, s.currency, s.model, s.unit_amount_cents, s.package_size, s.tiers, s.included_quantity, s.minimum_cents, s.maximum_cents,
  s.dimension, s.dimension_value, s.effective_from, s.superseded_at, s.created_at,
  -- Not now(): who has just made a price is told that it counts.
  s.model <> 'none' and s.effective_from <= clock_timestamp() and coalesce(s.superseded_at > clock_timestamp(), true) as is_in_force
from (
  select
    r.*, r.meter_code as meter, r.plan_code as plan,
    lead(r.effective_from) over (
      partition by r.meter_code, r.plan_code, r.currency, r.dimension, r.dimension_value order by r.effective_from, r.created_at
    ) as superseded_at
  from billing.prices r
) as s;

create trigger refuse_write instead of insert or update or delete on api.prices
  for each row execute function billing.refuse_write();

comment on view api.prices is 'Every price that was ever made. For platform_admin; view plans shows what counts. A price never changes: another one takes its place from a moment on.';
comment on column api.prices.id is 'What lines of invoices name it by.';
comment on column api.prices.meter is 'What it is for; null: it is the fee of a plan.';
comment on column api.prices.plan is 'For organizations with this plan, whose own prices of a meter stand in place of those for everybody; null: for everybody.';
comment on column api.prices.currency is 'Of organizations with this currency.';
comment on column api.prices.model is 'flat (one amount, due with the first unit), per_unit, package (each package begun), graduated (each unit by the tier it lies in), volume (all units by the tier that the quantity reaches), or none: no price of its own from then on.';
comment on column api.prices.unit_amount_cents is 'Of a unit, of a package, or of all (flat), in minor units of currency, perhaps a fraction. Null when tiers say it.';
comment on column api.prices.package_size is 'How many units a package has.';
comment on column api.prices.tiers is '[{"up_to", "unit_amount_cents", "flat_amount_cents"}]: up_to belongs to the tier, and is null in the last one.';
comment on column api.prices.included_quantity is 'The first units of a period, which cost nothing and fill tiers.';
comment on column api.prices.minimum_cents is 'What is due at least in a period, also without usage.';
comment on column api.prices.maximum_cents is 'What is due at most in a period.';
comment on column api.prices.dimension is 'It is for the usage whose dimension of this name has the value dimension_value; null: for all that has no price of its own.';
comment on column api.prices.dimension_value is 'See dimension.';
comment on column api.prices.effective_from is 'It counts for the periods that begin from then on (UTC).';
comment on column api.prices.superseded_at is 'Since when another one stands in its place (UTC); null: it is the last one. The same as effective_from: it was put right before it began.';
comment on column api.prices.created_at is 'When it was made (UTC).';
comment on column api.prices.is_in_force is 'Whether it counts for a period that begins now. Never null.';

grant select on api.prices to platform_admin;

create function api.create_plan(code text, name text, description text default '', is_public boolean default true, "position" integer default null)
returns api.plans
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('makes plans', 'GET /plans lists those that there are.');
  perform billing.create_plan(create_plan.code, create_plan.name, create_plan.description, create_plan.is_public, create_plan.position);
  return (select l from api.plans l where l.code = create_plan.code);
end;
$$;

comment on function api.create_plan(text, text, text, boolean, integer) is $$Make a plan

For platform_admin. code is what organizations and prices name it by, and stays. A plan that is not public is shown to staff alone.
Without position it is the last one. What it costs are prices (create_price), what it offers are features (set_plan_feature). Returns the plan as plans shows it.

Errors: INVALID_PLAN (400), ROLE_REQUIRED (403), PLAN_EXISTS (409).$$;

create function api.change_plan(
  code text, name text default null, description text default null, is_public boolean default null, "position" integer default null
)
returns api.plans
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('changes plans', 'GET /plans lists those that there are.');
  perform billing.change_plan(change_plan.code, change_plan.name, change_plan.description, change_plan.is_public, change_plan.position);
  return (select l from api.plans l where l.code = change_plan.code);
end;
$$;

comment on function api.change_plan(text, text, text, boolean, integer) is $$Change what a plan is called, and who sees it

For platform_admin. Send only what changes. Organizations that have the plan keep it when it is public no more. Returns the plan as plans
shows it.

Errors: INVALID_PLAN (400), ROLE_REQUIRED (403), PLAN_NOT_FOUND (404).$$;

create function api.set_plan_feature(
  plan text, feature text, kind text default 'boolean', limit_value numeric default null, description text default null,
  enforcement text default 'soft', meter text default null
)
returns api.plans
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('says what plans offer', 'GET /plans lists what they do.');
  perform billing.set_plan_feature(
    set_plan_feature.plan, set_plan_feature.feature, set_plan_feature.kind, set_plan_feature.limit_value, set_plan_feature.description,
    set_plan_feature.enforcement, set_plan_feature.meter
  );
  return (select l from api.plans l where l.code = set_plan_feature.plan);
end;
$$;

comment on function api.set_plan_feature(text, text, text, numeric, text, text, text) is $$Say what a plan offers

For platform_admin. A feature that is there is replaced; its description stays unless you send one. kind: boolean (it is there),
limit_per_period (so much in each billing period) or limit (so much at any time); limit_value null: without a limit. enforcement: hard (an
act beyond the limit is refused) or soft (alerts tell of it). meter: what uses it up; without one it is what reserve_quota was asked for,
and of the limits members, workspaces and api_keys what there is of them. A limit at any time takes a meter of aggregation weighted_sum,
whose level counts; a hard limit_per_period one of aggregation sum or count. Returns the plan as plans shows it.

Errors: INVALID_PLAN (400), ROLE_REQUIRED (403), PLAN_NOT_FOUND (404).$$;

create function api.remove_plan_feature(plan text, feature text)
returns api.plans
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('says what plans offer', 'GET /plans lists what they do.');
  perform billing.remove_plan_feature(remove_plan_feature.plan, remove_plan_feature.feature);
  return (select l from api.plans l where l.code = remove_plan_feature.plan);
end;
$$;

comment on function api.remove_plan_feature(text, text) is $$Have a plan no longer offer something

For platform_admin. Returns the plan as plans shows it.

Errors: ROLE_REQUIRED (403), FEATURE_NOT_FOUND, PLAN_NOT_FOUND (404).$$;

create function api.create_price(
  meter text default null,
  plan text default null,
  currency text default 'usd',
  model text default 'per_unit',
  unit_amount_cents numeric default null,
  package_size numeric default null,
  tiers jsonb default null,
  included_quantity numeric default 0,
  minimum_cents numeric default null,
  maximum_cents numeric default null,
  dimension text default null,
  dimension_value text default null,
  effective_from timestamptz default null
)
returns api.prices
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_id uuid;
begin
  perform tenancy.require_staff('makes prices', 'GET /plans says what things cost.');
  v_id := billing.create_price(
    create_price.meter, create_price.plan, create_price.currency, create_price.model, create_price.unit_amount_cents, create_price.package_size,
    create_price.tiers, create_price.included_quantity, create_price.minimum_cents, create_price.maximum_cents, create_price.dimension,
    create_price.dimension_value, create_price.effective_from
  );
  return (select p from api.prices p where p.id = v_id);
end;
$$;

comment on function api.create_price(text, text, text, text, numeric, numeric, jsonb, numeric, numeric, numeric, text, text, timestamptz) is
$$Make a price, from a moment on

For platform_admin. A price is for a meter, or with plan for the meter in that plan, or without meter for the plan itself (its fee, of
model flat). With dimension and dimension_value it is for that group of the meter's usage; what has no price of its own has the one
without. Arguments are what the columns of prices say. Amounts are in minor units of currency, with up to 12 decimals, and
never read as floating point: a JSON number is taken as it is written, and so is a text, which no library rounds.

It counts for the periods that begin from effective_from on; without effective_from, from now on. A moment that is past reaches
those that are not finalized yet, and is only for what has had no price since then. A price never changes: make another one
from a moment ahead, or from the same one while that is ahead. Model none withdraws the price of its own that a meter, a plan or a group
has. Returns the price as prices shows it.

Errors: INVALID_PRICE (400), ROLE_REQUIRED (403), PRICE_EXISTS (409).$$;

create function api.set_plan(plan text)
returns api.organizations
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('gives plans to organizations', 'GET /plans lists them; ask the provider''s staff.');
  perform billing.set_plan(set_plan.plan);
  return (select o from api.organizations o where o.id = tenancy.current_org());
end;
$$;

comment on function api.set_plan(text) is $$Give an organization a plan

For platform_admin, of the organization that X-Organization-ID names. Where there never was a subscription, it counts for the periods that are
not finalized yet, as a whole; else from now on: the subscription changes (change_subscription), and where that was canceled the
organization has the plan without one. Returns the organization as organizations shows it.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED (403), ORGANIZATION_NOT_FOUND, PLAN_NOT_FOUND (404), PERIOD_BUSY (503).$$;

grant execute on function
  api.create_plan(text, text, text, boolean, integer), api.change_plan(text, text, text, boolean, integer),
  api.set_plan_feature(text, text, text, numeric, text, text, text), api.remove_plan_feature(text, text),
  api.create_price(text, text, text, text, numeric, numeric, jsonb, numeric, numeric, numeric, text, text, timestamptz), api.set_plan(text)
  to member, service, platform_admin;
