-- Hard quotas of what the database itself sees: rows of metered tables, members, workspaces and API keys. After the rows are there, in the
-- transaction that wrote them: row security has had its say then, so nobody learns or locks anything of another organization.

-- Called by the triggers of metered tables, with the events that their statement has recorded. What the transaction reserved beforehand its
-- events use up; the rest of them is granted here. Frees what is stored without a word, and whatever the limit has become.
create or replace function billing.enforce_quotas(
  p_organization_ids uuid[], p_event_names text[], p_occurred_at timestamptz, p_id_start text
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_quota record;
  v_period record;
  v_counter billing.quota_counters;
  v_added numeric;
  v_counted numeric;
  v_reserved numeric;
  v_used numeric;
begin
  -- The usual case, for every statement of every metered table.
  if not exists (select from billing.plan_features f where f.enforcement = 'hard' and f.meter_code is not null)
    and not exists (
      select
      from billing.entitlement_overrides v
      where v.organization_id = any (p_organization_ids)
        and v.enforcement = 'hard'
        and v.meter_code is not null
    )
  then
    return;
  end if;

  -- In order, so that statements that write several organizations do not wait for each other in a circle.
  for v_quota in
    select o.organization_id, e.feature, e.kind, e.limit_value, e.meter_code, m.aggregation, m.unit_size
    from unnest(p_organization_ids) as o (organization_id)
    cross join lateral billing.entitlements_of(o.organization_id, p_occurred_at) e
    join metering.meters m on m.code = e.meter_code and m.deleted_at is null
    where e.enforcement = 'hard'
      and e.limit_value is not null
      and (m.event_name = any (p_event_names) or m.event_name is null)
    order by o.organization_id, e.feature
  loop
    select case v_quota.aggregation when 'count' then sum(e.events) else round(sum(e.value) / v_quota.unit_size, 12) end into v_added
    from metering.counted_by_time(
      v_quota.organization_id, p_occurred_at, p_occurred_at + interval '1 microsecond', null, null, array[v_quota.meter_code]
    ) e
    where e.id between (p_id_start || '00000000')::uuid and (p_id_start || 'ffffffff')::uuid;
    continue when v_added > 0 is not true;

    v_period := billing.quota_period(v_quota.organization_id, v_quota.kind, p_occurred_at);
    v_counter := billing.lock_quota(v_quota.organization_id, v_quota.feature, v_period.period_start);
    -- These events are among what was metered.
    v_counted := billing.counted_of_quota(
      v_quota.organization_id, v_quota.feature, v_quota.kind, v_quota.meter_code, v_period.period_start, v_period.period_end
    );
    v_reserved := case when v_counter.reserved_xid = pg_current_xact_id() then least(v_counter.reserved, v_added) else 0 end;
    v_added := v_added - v_reserved;
    v_used := case v_quota.kind when 'limit' then v_counted - v_added else greatest(v_counted - v_added, v_counter.granted) end;
    if v_added > 0 and v_used + v_added > v_quota.limit_value then
      perform billing.raise_quota_exceeded(v_quota.feature, v_quota.limit_value, v_used, v_added, v_period.period_end);
    elsif v_quota.kind <> 'limit' then
      update billing.quota_counters c
      set granted = v_used + v_added, reserved = c.reserved - v_reserved
      where c.organization_id = v_quota.organization_id
        and c.feature = v_quota.feature
        and c.period_start = v_period.period_start;
    end if;
  end loop;
end;
$$;

-- members, workspaces and api_keys, where nothing else counts them. Pending invitations hold seats against further invitations; whoever accepts one
-- takes a seat that was held, so against memberships only members count.
create or replace function billing.enforce_count(p_organization_id uuid, p_feature text, p_rows_of text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_limit numeric;
  v_count numeric;
begin
  select e.limit_value into v_limit
  from billing.entitlements_of(p_organization_id, clock_timestamp()) e
  where e.feature = p_feature
    and e.kind = 'limit'
    and e.enforcement = 'hard'
    and e.meter_code is null;
  if v_limit is null then
    return;
  end if;
  perform billing.lock_quota(p_organization_id, p_feature, '-infinity');
  if p_rows_of = 'memberships' then
    select count(*) into v_count from tenancy.memberships m where m.organization_id = p_organization_id;
  else
    v_count := billing.counted_of_quota(p_organization_id, p_feature, 'limit', null, '-infinity', 'infinity');
  end if;
  if v_count > v_limit then
    perform billing.raise_quota_exceeded(p_feature, v_limit, v_count - 1, 1, 'infinity');
  end if;
end;
$$;

create or replace function billing.guard_count()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform billing.enforce_count(new.organization_id, tg_argv[0], tg_table_name);
  return null;
end;
$$;

alter function billing.guard_count() owner to goldleaves_kernel;
grant execute on function billing.enforce_quotas(uuid[], text[], timestamptz, text), billing.enforce_count(uuid, text, text)
  to goldleaves_kernel;

create or replace trigger guard_members after insert on tenancy.memberships
  for each row execute function billing.guard_count('members');
create or replace trigger guard_members after insert on tenancy.invitations
  for each row execute function billing.guard_count('members');
-- One that was not pending any more, and is sent again.
create or replace trigger guard_members_again after update on tenancy.invitations
  for each row
  when (
    new.accepted_at is null and new.revoked_at is null and new.expires_at > now()
    and (old.accepted_at is not null or old.revoked_at is not null or old.expires_at <= now())
  )
  execute function billing.guard_count('members');
create or replace trigger guard_workspaces after insert on tenancy.workspaces
  for each row execute function billing.guard_count('workspaces');
-- The successor of a key stands in its place.
create or replace trigger guard_api_keys after insert on tenancy.api_keys
  for each row when (new.kind = 'organization' and new.rotated_from is null) execute function billing.guard_count('api_keys');
