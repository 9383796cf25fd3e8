-- What a unit of an operation weighs. Weights are only ever added: each counts from its effective_from until the next one does.

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
