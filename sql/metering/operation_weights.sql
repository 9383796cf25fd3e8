-- What a unit of an operation weighs. A weight counts from its effective_from until the next one of the operation does.

-- The weight of an operation (the name of an event) at a moment: the organization's own, else the one for all, else null. Always one
-- row. A table function without `set search_path`, so that it is inlined where it is joined laterally: it is asked for each event.
create or replace function metering.weight_of(p_organization_id uuid, p_event_name text, p_at timestamptz)
returns table (weight numeric)
language sql
stable
parallel safe
as $$
  select coalesce(
    (
      select w.weight
      from metering.operation_weights w
      where w.organization_id = p_organization_id
        and w.operation = p_event_name
        and w.effective_from <= p_at
      order by w.effective_from desc
      limit 1
    ),
    (
      select w.weight
      from metering.operation_weights w
      where w.organization_id is null
        and w.operation = p_event_name
        and w.effective_from <= p_at
      order by w.effective_from desc
      limit 1
    )
  )
$$;

grant execute on function metering.weight_of(uuid, text, timestamptz) to goldleaves_kernel;

-- For platform_admin, through schema api. p_effective_from null: now. What is recorded keeps what it weighed, for ever; so only the first
-- weight of an operation may reach back, for usage that comes later and happened before.
create or replace function metering.set_operation_weight(
  p_operation text, p_weight numeric, p_organization_id uuid, p_effective_from timestamptz
)
returns metering.operation_weights
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_problem text;
  v_from timestamptz;
  v_made metering.operation_weights;
begin
  -- First come, first in time: the clock is read once the others are done.
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.weight.' || p_operation, 0));
  v_from := coalesce(p_effective_from, clock_timestamp());
  v_problem := case
    when p_operation is null or p_operation !~ '^[A-Za-z0-9_.:-]{1,128}$'
      then 'an operation is the name of an event: 1 to 128 letters, digits and _ . : -'
    when p_weight is null or not (p_weight >= 0 and p_weight < 1e9) or scale(p_weight) > 9
      then 'a weight is between 0 and 1e9, with at most 9 decimals'
    when not isfinite(v_from) then 'effective_from is a moment'
    when p_effective_from < clock_timestamp() and exists (
      select from metering.operation_weights w
      where w.operation = p_operation
        and (w.organization_id is null or w.organization_id = p_organization_id)
    ) then format('%s has a weight already, and another one counts from now on at the earliest', p_operation)
  end;
  if v_problem is not null then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_WEIGHT: ' || v_problem,
      hint = 'GET /operation_weights lists what is set. Leave effective_from out to set a weight from now on.';
  end if;
  if p_organization_id is not null and not exists (select from tenancy.organizations o where o.id = p_organization_id) then
    perform billing.raise_no_organization(p_organization_id);
  end if;

  -- One that is still to come is put right.
  insert into metering.operation_weights (organization_id, operation, effective_from, weight)
  values (p_organization_id, p_operation, v_from, p_weight)
  on conflict (organization_id, operation, effective_from) do update set weight = excluded.weight
  returning * into v_made;
  return v_made;
end;
$$;

alter function metering.set_operation_weight(text, numeric, uuid, timestamptz) owner to goldleaves_kernel;
grant execute on function metering.set_operation_weight(text, numeric, uuid, timestamptz) to platform_admin;
