-- Quotas: how much of a feature is used, and acts that are granted or refused by that. What a hard quota refuses is the act, never the usage
-- that is metered of it: that has happened.
--
-- Used of a limit per period is what was metered in the billing period, or what was granted, whichever is more: usage is metered later than it
-- is granted, and each grant goes on from the greater one, so nothing counts twice and nothing twice over is let through. A limit at any time
-- is what there is now: rows of members, workspaces and API keys, what a meter of levels stores, else what was granted and not released.
--
-- Whoever grants locks the counter first and reads in later statements: those who waited see what was granted before them. Before that the period
-- lock is shared, and the period made if there is none, as everybody does who meters in the same transaction: else they would be taken in
-- both orders.

-- The period that a quota counts in; of a limit at any time all of time.
create or replace function billing.quota_period(
  p_organization_id uuid, p_kind text, p_at timestamptz, out period_start timestamptz, out period_end timestamptz
)
language plpgsql
stable
set search_path = ''
as $$
begin
  if p_kind = 'limit_per_period' then
    select f.period_start, f.period_end into period_start, period_end from billing.find_period(p_organization_id, p_at) f;
  else
    period_start := '-infinity';
    period_end := 'infinity';
  end if;
end;
$$;

-- What counts by itself, without being granted; null where only grants count. A pending invitation holds a seat, and a key that was rotated and
-- its successor are one, while both work.
create or replace function billing.counted_of_quota(
  p_organization_id uuid, p_feature text, p_kind text, p_meter_code text, p_period_start timestamptz, p_period_end timestamptz
)
returns numeric
language plpgsql
stable
set search_path = ''
as $$
begin
  return case
    when p_kind = 'boolean' then null
    when p_meter_code is not null and p_kind = 'limit_per_period' then (
      select coalesce(sum(m.quantity), 0)
      from metering.meters k
      cross join lateral metering.measure(
        p_organization_id, array[p_period_start, p_period_end], '{}', jsonb_build_object('meter', p_meter_code), false,
        k.aggregation <> 'weighted_sum'
      ) m
      where k.code = p_meter_code
        and m.metered
    )
    when p_meter_code is not null then (
      select round(greatest(metering.recorded_level(p_organization_id, p_meter_code, clock_timestamp()), 0) / k.unit_size, 12)
      from metering.meters k
      where k.code = p_meter_code
    )
    when p_kind <> 'limit' then null
    when p_feature = 'members' then (
      select count(*) from tenancy.memberships m where m.organization_id = p_organization_id
    ) + (
      select count(*)
      from tenancy.invitations i
      where i.organization_id = p_organization_id
        and i.accepted_at is null
        and i.revoked_at is null
        and i.expires_at > now()
    )
    when p_feature = 'workspaces' then (select count(*) from tenancy.workspaces w where w.organization_id = p_organization_id)
    when p_feature = 'api_keys' then (
      select count(*)
      from tenancy.api_keys k
      where k.organization_id = p_organization_id
        and k.kind = 'organization'
        and k.revoked_at is null
        and (k.expires_at is null or k.expires_at > now())
        and not exists (
          select
          from tenancy.api_keys s
          where s.rotated_from = k.id
            and s.revoked_at is null
            and (s.expires_at is null or s.expires_at > now())
        )
    )
  end;
end;
$$;

-- What each entitlement of an organization comes to now. used is null of what is there or not.
create or replace function billing.quota_usage(p_organization_id uuid)
returns table (
  feature text, kind text, limit_value numeric, enforcement text, meter_code text, is_granted boolean, source text, expires_at timestamptz,
  plan_code text, period_start timestamptz, period_end timestamptz, used numeric
)
language sql
stable
set search_path = ''
as $$
  select
    e.feature, e.kind, e.limit_value, e.enforcement, e.meter_code, e.is_granted, e.source, e.expires_at, e.plan_code, p.period_start, p.period_end,
    case
      when e.kind = 'boolean' then null
      -- Of what is counted at any time nothing is kept as granted.
      when e.kind = 'limit' then trim_scale(coalesce(n.counted, c.granted, 0))
      else trim_scale(greatest(n.counted, c.granted, 0))
    end
  from (select clock_timestamp() as at) as now
  cross join lateral billing.entitlements_of(p_organization_id, now.at) e
  cross join lateral billing.quota_period(p_organization_id, e.kind, now.at) p
  cross join lateral billing.counted_of_quota(p_organization_id, e.feature, e.kind, e.meter_code, p.period_start, p.period_end) as n (counted)
  left join billing.quota_counters c on c.organization_id = p_organization_id and c.feature = e.feature and c.period_start = p.period_start
  where p_organization_id is not null
$$;

-- An update, although nothing changes: a lock alone is nothing that a transaction outside READ COMMITTED, whose snapshot is older, would
-- meet. It gets 40001, and tries again.
create or replace function billing.lock_quota(p_organization_id uuid, p_feature text, p_period_start timestamptz)
returns billing.quota_counters
language sql
volatile
set search_path = ''
as $$
  insert into billing.quota_counters as c (organization_id, feature, period_start)
  values (p_organization_id, p_feature, p_period_start)
  on conflict (organization_id, feature, period_start) do update set granted = c.granted
  returning c
$$;

create or replace function billing.raise_quota_exceeded(
  p_feature text, p_limit numeric, p_used numeric, p_asked numeric, p_resets_at timestamptz
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT402',
    message = format(
      'QUOTA_EXCEEDED: %s of %s %s are used, and %s more would be over the limit', trim_scale(p_used), trim_scale(p_limit), p_feature,
      trim_scale(p_asked)
    ),
    detail = jsonb_build_object(
      'feature', p_feature, 'limit', trim_scale(p_limit), 'used', trim_scale(p_used), 'asked', trim_scale(p_asked),
      'resets_at', case when isfinite(p_resets_at) then p_resets_at end
    )::text,
    hint = case
      when isfinite(p_resets_at) then format('It begins anew at %s. Until then, ask for a plan with more.', p_resets_at)
      else 'Free some of it, or ask for a plan with more.'
    end;
end;
$$;

create or replace function billing.raise_invalid_quantity(p_problem text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using errcode = 'PT400', message = 'INVALID_QUANTITY: ' || p_problem;
end;
$$;

-- Grants so much of a feature, or refuses it. With a reference once, however often it is asked. In the transaction of the act: what it then meters is
-- what was granted.
create or replace function billing.grant_quota(
  p_organization_id uuid, p_feature text, p_amount numeric, p_reference text,
  out limit_value numeric, out used numeric, out resets_at timestamptz
)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_entitlement record;
  v_kind text;
  v_period record;
  v_counter billing.quota_counters;
  v_reservation billing.quota_reservations;
  v_counted numeric;
  v_is_new boolean := true;
begin
  if coalesce(p_amount > 0 and billing.is_amount(p_amount), false) is false then
    perform billing.raise_invalid_quantity(
      format('n is a number above 0 and below 1e15 with at most 12 decimals, not %s', coalesce(left(p_amount::text, 40), 'null'))
    );
  elsif length(p_reference) not between 1 and 200 then
    perform billing.raise_invalid_quantity('a reference has 1 to 200 characters');
  end if;
  perform billing.share_period_locks(array[p_organization_id]);
  perform billing.ensure_periods(p_organization_id, v_now, v_now);
  select * into v_entitlement from billing.entitlements_of(p_organization_id, v_now) e where e.feature = p_feature and e.is_granted;
  -- Again where the plan was changed, or the period ended, while it waited for the lock.
  loop
    if v_entitlement.feature is null then
      perform billing.raise_feature_required(p_organization_id, p_feature);
    elsif v_entitlement.kind = 'boolean' then
      return;
    end if;
    v_kind := v_entitlement.kind;
    v_period := billing.quota_period(p_organization_id, v_kind, v_now);
    v_counter := billing.lock_quota(p_organization_id, p_feature, v_period.period_start);
    v_now := clock_timestamp();
    select * into v_entitlement from billing.entitlements_of(p_organization_id, v_now) e where e.feature = p_feature and e.is_granted;
    exit when v_entitlement.kind = v_kind and v_now < v_period.period_end;
  end loop;

  limit_value := v_entitlement.limit_value;
  resets_at := case when isfinite(v_period.period_end) then v_period.period_end end;
  v_counted := billing.counted_of_quota(
    p_organization_id, p_feature, v_kind, v_entitlement.meter_code, v_period.period_start, v_period.period_end
  );
  used := case when v_kind = 'limit' and v_counted is not null then v_counted else greatest(v_counted, v_counter.granted) end;

  if p_reference is not null then
    insert into billing.quota_reservations (organization_id, feature, reference, period_start, amount)
    values (p_organization_id, p_feature, p_reference, v_period.period_start, p_amount)
    on conflict do nothing;
    v_is_new := found;
    if not v_is_new then
      select * into strict v_reservation
      from billing.quota_reservations r
      where r.organization_id = p_organization_id
        and r.feature = p_feature
        and r.reference = p_reference;
      if v_reservation.amount <> p_amount or v_reservation.released > 0 then
        raise exception using
          errcode = 'PT409',
          message = format(
            'RESERVATION_CONFLICT: under %s %s of %s were reserved before%s', quote_literal(left(p_reference, 80)),
            trim_scale(v_reservation.amount), p_feature,
            case when v_reservation.released > 0 then format(', and %s given back', trim_scale(v_reservation.released)) else '' end
          ),
          hint = 'A retry repeats what it asked for. Ask for something else under another reference.';
      end if;
    end if;
  end if;

  if v_is_new then
    if v_entitlement.enforcement = 'hard' and used + p_amount > limit_value then
      perform billing.raise_quota_exceeded(p_feature, limit_value, used, p_amount, v_period.period_end);
    elsif v_kind = 'limit_per_period' or v_counted is null then
      used := used + p_amount;
      update billing.quota_counters c
      set
        granted = grant_quota.used,
        reserved = p_amount + case when c.reserved_xid = pg_current_xact_id() then c.reserved else 0 end,
        reserved_xid = pg_current_xact_id()
      where c.organization_id = p_organization_id
        and c.feature = p_feature
        and c.period_start = v_period.period_start;
      -- It may never be metered, and then nothing else says that it is used.
      perform billing.queue_alerts(p_organization_id);
    end if;
  end if;
  used := trim_scale(used);
  limit_value := trim_scale(limit_value);
end;
$$;

-- Gives back what was granted and did not happen, or is not there any more. p_amount: of a reservation so much altogether, null for all of it, so
-- that a retry gives nothing back twice; without a reference so much more of the running period.
create or replace function billing.release_quota(p_organization_id uuid, p_feature text, p_amount numeric, p_reference text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_reservation billing.quota_reservations;
  v_period_start timestamptz;
  v_amount numeric := p_amount;
begin
  if not coalesce(p_amount > 0 and billing.is_amount(p_amount), p_amount is null and p_reference is not null) then
    perform billing.raise_invalid_quantity(
      format('n is a number above 0 and below 1e15 with at most 12 decimals, not %s', coalesce(left(p_amount::text, 40), 'null'))
    );
  end if;
  perform billing.share_period_locks(array[p_organization_id]);
  if p_reference is null then
    v_period_start := coalesce(
      (
        select (billing.quota_period(p_organization_id, e.kind, clock_timestamp())).period_start
        from billing.entitlements_of(p_organization_id, clock_timestamp()) e
        where e.feature = p_feature
      ),
      '-infinity'
    );
  else
    -- The counter is locked before the reservation, as by who reserves.
    select r.period_start into v_period_start
    from billing.quota_reservations r
    where r.organization_id = p_organization_id
      and r.feature = p_feature
      and r.reference = p_reference;
    if not found then
      raise exception using
        errcode = 'PT404',
        message = format(
          'RESERVATION_NOT_FOUND: nothing of %s was reserved under %s', coalesce(left(p_feature, 80), 'null'), quote_literal(left(p_reference, 80))
        ),
        hint = 'It is the reference that reserve_quota was given, for the same feature and organization.';
    end if;
    perform billing.lock_quota(p_organization_id, p_feature, v_period_start);
    select * into strict v_reservation
    from billing.quota_reservations r
    where r.organization_id = p_organization_id
      and r.feature = p_feature
      and r.reference = p_reference;
    if p_amount > v_reservation.amount then
      perform billing.raise_invalid_quantity(
        format('%s were reserved, and %s cannot be given back', trim_scale(v_reservation.amount), trim_scale(p_amount))
      );
    end if;
    v_amount := greatest(coalesce(p_amount, v_reservation.amount) - v_reservation.released, 0);
    update billing.quota_reservations r
    set released = r.released + v_amount
    where r.organization_id = p_organization_id
      and r.feature = p_feature
      and r.reference = p_reference;
  end if;
  -- What the transaction reserved itself it has not any more to meter.
  update billing.quota_counters c
  set granted = greatest(c.granted - v_amount, 0), reserved = greatest(c.reserved - v_amount, 0)
  where c.organization_id = p_organization_id
    and c.feature = p_feature
    and c.period_start = v_period_start;
end;
$$;

-- Null without a limit, as greatest() alone would not say.
create or replace function billing.remaining_of(p_limit numeric, p_used numeric)
returns numeric
language sql
immutable
parallel safe
as $$ select case when p_limit is not null then greatest(p_limit - p_used, 0) end $$;

-- What the current organization may use, for everybody in it.
create or replace function billing.shown_entitlements()
returns table (
  feature text, description text, kind text, limit_value numeric, used numeric, remaining numeric, resets_at timestamptz, enforcement text,
  meter text, is_granted boolean, source text, expires_at timestamptz
)
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  perform tenancy.require_role_in('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read');
  perform tenancy.require_organization();
  return query
    select
      u.feature,
      coalesce(
        (select f.description from billing.plan_features f where f.plan_code = u.plan_code and f.feature = u.feature),
        (select min(f.description) from billing.plan_features f where f.feature = u.feature),
        ''
      ),
      u.kind, u.limit_value, u.used, billing.remaining_of(u.limit_value, u.used), case when isfinite(u.period_end) then u.period_end end, u.enforcement,
      u.meter_code, u.is_granted, u.source, u.expires_at
    from billing.quota_usage(tenancy.current_org()) u
    order by u.feature;
end;
$$;

alter function billing.shown_entitlements() owner to goldleaves_kernel;
grant execute on function billing.shown_entitlements() to member, platform_admin;
grant execute on function
  billing.quota_period(uuid, text, timestamptz), billing.counted_of_quota(uuid, text, text, text, timestamptz, timestamptz),
  billing.quota_usage(uuid), billing.lock_quota(uuid, text, timestamptz), billing.remaining_of(numeric, numeric),
  billing.raise_quota_exceeded(text, numeric, numeric, numeric, timestamptz), billing.raise_invalid_quantity(text),
  billing.grant_quota(uuid, text, numeric, text), billing.release_quota(uuid, text, numeric, text) to goldleaves_kernel;
