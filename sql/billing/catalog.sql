-- Plans, what they offer, and prices: made by the provider's staff, shown to everybody where they are public.

create or replace function billing.raise_no_plan(p_code text)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT404',
    message = format('PLAN_NOT_FOUND: there is no plan %s', coalesce(left(p_code, 80), 'null')),
    hint = format('There are %s.', (select string_agg(l.code, ', ' order by l.position, l.code) from billing.plans l));
end;
$$;

create or replace function billing.raise_invalid_plan(p_code text, p_problem text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using errcode = 'PT400', message = format('INVALID_PLAN: %s: %s', coalesce(left(p_code, 80), 'null'), p_problem);
end;
$$;

create or replace function billing.require_plan_texts(p_code text, p_name text, p_description text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  if coalesce(length(btrim(p_name)), 0) not between 1 and 200 then
    perform billing.raise_invalid_plan(p_code, 'a name has 1 to 200 characters');
  elsif length(p_description) > 1000 then
    perform billing.raise_invalid_plan(p_code, 'a description has at most 1,000 characters');
  end if;
end;
$$;

create or replace function billing.create_plan(p_code text, p_name text, p_description text, p_is_public boolean, p_position integer)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if coalesce(p_code, '') !~ '^[a-z0-9_-]{1,64}$' then
    perform billing.raise_invalid_plan(p_code, 'a code has 1 to 64 lowercase letters, digits, _ and -');
  end if;
  perform billing.require_plan_texts(p_code, p_name, p_description);
  insert into billing.plans (code, name, description, is_public, position)
  values (
    p_code, btrim(p_name), coalesce(p_description, ''), coalesce(p_is_public, true),
    coalesce(p_position, (select least(max(l.position), 2147483646) + 1 from billing.plans l), 1)
  )
  on conflict do nothing;
  if not found then
    raise exception using
      errcode = 'PT409',
      message = format('PLAN_EXISTS: there is a plan %s', p_code),
      hint = 'Change it with change_plan.';
  end if;
end;
$$;

-- What is null stays as it is.
create or replace function billing.change_plan(p_code text, p_name text, p_description text, p_is_public boolean, p_position integer)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform billing.require_plan_texts(p_code, coalesce(p_name, '-'), p_description);
  update billing.plans l
  set
    name = coalesce(btrim(p_name), l.name),
    description = coalesce(p_description, l.description),
    is_public = coalesce(p_is_public, l.is_public),
    position = coalesce(p_position, l.position)
  where l.code = p_code;
  if not found then
    perform billing.raise_no_plan(p_code);
  end if;
end;
$$;

-- What is wrong with a feature, of a plan or of an override; null when nothing is. What a hard limit counts has to add up, since it is granted
-- before it is metered; what is there at any time is a level, and none of a period.
create or replace function billing.fault_of_feature(p_feature text, p_kind text, p_limit_value numeric, p_enforcement text, p_meter_code text)
returns text
language plpgsql
stable
set search_path = ''
as $$
declare
  v_aggregation text := (select m.aggregation from metering.meters m where m.code = p_meter_code and m.deleted_at is null);
begin
  return case
    when coalesce(p_feature, '') !~ '^[a-z0-9_.]{1,64}$' then 'the name of a feature has 1 to 64 lowercase letters, digits, _ and .'
    when p_kind is null or p_kind not in ('boolean', 'limit_per_period', 'limit') then 'a feature is of kind boolean, limit_per_period or limit'
    when p_enforcement is null or p_enforcement not in ('hard', 'soft') then 'enforcement is hard (an act beyond the limit is refused) or soft'
    when p_kind = 'boolean' and p_limit_value is not null then 'a boolean feature has no limit_value: it is there, or it is not'
    when p_kind = 'boolean' and (p_meter_code is not null or p_enforcement = 'hard') then 'a boolean feature has no meter and no enforcement'
    when not billing.is_amount(p_limit_value) then 'limit_value is a number from 0 to 1e15 with at most 12 decimals; null is without a limit'
    when p_meter_code is not null and v_aggregation is null then format('there is no meter %s', left(p_meter_code, 80))
    when p_kind = 'limit' and v_aggregation <> 'weighted_sum' then format(
      '%s reads what comes to pass in a period (%s); a limit at any time needs one of aggregation weighted_sum, or a limit_per_period', p_meter_code,
      v_aggregation
    )
    when p_kind = 'limit_per_period' and v_aggregation in ('min', 'latest')
      then format('%s reads a value that nothing uses up (%s)', p_meter_code, v_aggregation)
    when p_kind = 'limit_per_period' and p_enforcement = 'hard' and v_aggregation not in ('sum', 'count') then format(
      'a hard limit per period grants acts one by one, and %s does not add up (%s)', p_meter_code, v_aggregation
    )
  end;
end;
$$;

create or replace function billing.set_plan_feature(
  p_plan_code text, p_feature text, p_kind text, p_limit_value numeric, p_description text, p_enforcement text, p_meter_code text
)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_problem text := coalesce(
    billing.fault_of_feature(p_feature, p_kind, p_limit_value, p_enforcement, p_meter_code),
    case when length(p_description) > 200 then 'the description of a feature has at most 200 characters' end
  );
begin
  if not exists (select from billing.plans l where l.code = p_plan_code) then
    perform billing.raise_no_plan(p_plan_code);
  elsif v_problem is not null then
    perform billing.raise_invalid_plan(p_plan_code, v_problem);
  end if;
  insert into billing.plan_features as f (plan_code, feature, kind, limit_value, enforcement, meter_code, description)
  values (p_plan_code, p_feature, p_kind, trim_scale(p_limit_value), p_enforcement, p_meter_code, coalesce(p_description, ''))
  on conflict (plan_code, feature) do update
  set
    kind = excluded.kind, limit_value = excluded.limit_value, enforcement = excluded.enforcement, meter_code = excluded.meter_code,
    description = coalesce(p_description, f.description);
end;
$$;

create or replace function billing.remove_plan_feature(p_plan_code text, p_feature text)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  delete from billing.plan_features f where f.plan_code = p_plan_code and f.feature = p_feature;
  if found then
    return;
  elsif not exists (select from billing.plans l where l.code = p_plan_code) then
    perform billing.raise_no_plan(p_plan_code);
  end if;
  raise exception using
    errcode = 'PT404',
    message = format('FEATURE_NOT_FOUND: the plan %s has no feature %s', p_plan_code, coalesce(left(p_feature, 80), 'null')),
    hint = coalesce(
      format('It has %s.', (select string_agg(f.feature, ', ' order by f.feature) from billing.plan_features f where f.plan_code = p_plan_code)),
      'It has none.'
    );
end;
$$;

-- What is wrong with it is said by the trigger of the table (billing.guard_prices), as to everybody who makes one.
create or replace function billing.create_price(
  p_meter_code text, p_plan_code text, p_currency text, p_model text, p_unit_amount_cents numeric, p_package_size numeric, p_tiers jsonb,
  p_included_quantity numeric, p_minimum_cents numeric, p_maximum_cents numeric, p_dimension text, p_dimension_value text,
  p_effective_from timestamptz
)
returns uuid
language sql
volatile
security definer
set search_path = ''
as $$
  insert into billing.prices (
    meter_code, plan_code, currency, model, unit_amount_cents, package_size, tiers, included_quantity, minimum_cents, maximum_cents, dimension,
    dimension_value, effective_from
  )
  values (
    p_meter_code, p_plan_code, p_currency, p_model, p_unit_amount_cents, p_package_size, p_tiers, p_included_quantity, p_minimum_cents,
    p_maximum_cents, p_dimension, p_dimension_value, p_effective_from
  )
  returning id
$$;

-- Of an organization that never had a subscription it counts for all that is not finalized; else from now on, for the subscription or, where
-- that was canceled, without one.
create or replace function billing.set_plan(p_plan_code text)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz;
  v_now billing.subscription_phases;
begin
  perform tenancy.require_organization();
  if not exists (select from billing.plans l where l.code = p_plan_code) then
    perform billing.raise_no_plan(p_plan_code);
  end if;
  v_at := billing.begin_subscription_change(tenancy.current_org(), null);
  select * into v_now from billing.phase_at(tenancy.current_org(), v_at);
  if v_now.organization_id is null then
    update tenancy.organizations o
    set plan = p_plan_code
    where o.id = tenancy.current_org()
      and o.plan <> p_plan_code;
  elsif v_now.subscription_id is not null and v_now.status <> 'canceled' then
    perform billing.change_subscription(tenancy.current_org(), p_plan_code, false, null);
  elsif v_now.subscription_id is not null or v_now.plan_code <> p_plan_code then
    perform billing.add_phase(tenancy.current_org(), v_at, null, 'active', p_plan_code);
    perform billing.announce_phases(tenancy.current_org());
  end if;
end;
$$;

-- Plans with what they offer, and the prices by which a period is rated that begins now, also those for everybody. Staff sees all plans,
-- everybody else the public ones: `role` is what the session was switched to, which only who may do so can change.
create or replace function billing.shown_plans()
returns table (
  code text, name text, description text, is_public boolean, "position" integer, features jsonb, prices jsonb
)
language sql
stable
security definer
set search_path = ''
as $$
  select
    l.code, l.name, l.description, l.is_public, l.position,
    (
      select coalesce(
        jsonb_agg(
          jsonb_build_object(
            'feature', f.feature, 'kind', f.kind, 'limit_value', f.limit_value, 'enforcement', f.enforcement, 'meter', f.meter_code,
            'description', f.description
          )
          order by f.feature
        ),
        '[]'
      )
      from billing.plan_features f
      where f.plan_code = l.code
    ),
    (
      select coalesce(
        jsonb_agg(
          jsonb_build_object(
            'meter', p.meter_code, 'description', coalesce(m.description, l.name), 'unit', m.unit, 'currency', p.currency, 'model', p.model,
            'unit_amount_cents', p.unit_amount_cents, 'package_size', p.package_size, 'tiers', p.tiers,
            'included_quantity', p.included_quantity, 'minimum_cents', p.minimum_cents, 'maximum_cents', p.maximum_cents,
            'dimension', p.dimension, 'dimension_value', p.dimension_value, 'effective_from', p.effective_from
          )
          order by p.currency, p.meter_code nulls first, p.dimension_value nulls last
        ),
        '[]'
      )
      from (select distinct r.currency from billing.prices r) as c
      cross join lateral billing.prices_in_force(l.code, c.currency, clock_timestamp()) p
      left join metering.meters m on m.code = p.meter_code
      where m.deleted_at is null
    )
  from billing.plans l
  where l.is_public or current_setting('role', true) = 'platform_admin'
  order by l.position, l.code
$$;

create or replace function billing.shown_currencies()
returns table (code text, name text, minor_units smallint)
language sql
stable
security definer
set search_path = ''
as $$ select c.code, c.name, c.minor_units from billing.currencies c order by c.code $$;

alter function billing.create_plan(text, text, text, boolean, integer) owner to goldleaves_kernel;
alter function billing.change_plan(text, text, text, boolean, integer) owner to goldleaves_kernel;
alter function billing.set_plan_feature(text, text, text, numeric, text, text, text) owner to goldleaves_kernel;
alter function billing.remove_plan_feature(text, text) owner to goldleaves_kernel;
alter function billing.create_price(text, text, text, text, numeric, numeric, jsonb, numeric, numeric, numeric, text, text, timestamptz)
  owner to goldleaves_kernel;
alter function billing.set_plan(text) owner to goldleaves_kernel;
alter function billing.shown_plans() owner to goldleaves_kernel;
alter function billing.shown_currencies() owner to goldleaves_kernel;
grant execute on function billing.raise_no_plan(text), billing.raise_invalid_plan(text, text), billing.require_plan_texts(text, text, text),
  billing.fault_of_feature(text, text, numeric, text, text) to goldleaves_kernel;
grant execute on function
  billing.create_plan(text, text, text, boolean, integer), billing.change_plan(text, text, text, boolean, integer),
  billing.set_plan_feature(text, text, text, numeric, text, text, text), billing.remove_plan_feature(text, text),
  billing.create_price(text, text, text, text, numeric, numeric, jsonb, numeric, numeric, numeric, text, text, timestamptz),
  billing.set_plan(text) to platform_admin;
grant execute on function billing.shown_plans(), billing.shown_currencies() to anon, member, platform_admin;
