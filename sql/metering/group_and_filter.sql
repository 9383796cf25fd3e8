-- What may be asked of usage: the dimensions to group by, and the filter. Checked before anything is read, so that a misspelt name is an
-- error and not an empty answer.

-- The filter with every value as a list of texts, as metering.measure() takes it, and as groups keep them. From the query of a URL PostgREST makes a text of it.
create or replace function metering.checked_filter(p_filter jsonb)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
declare
  v_filter jsonb := coalesce(p_filter, '{}');
  v_checked jsonb := '{}';
  v_name text;
  v_value jsonb;
  v_values text[];
  v_problem text;
begin
  if jsonb_typeof(v_filter) = 'string' then
    begin
      v_filter := (v_filter #>> '{}')::jsonb;
    exception when invalid_text_representation then
      null;
    end;
  end if;

  if jsonb_typeof(v_filter) <> 'object' then
    v_problem := 'it is an object of names and values';
  elsif (select count(*) from jsonb_object_keys(v_filter)) > 32 then
    v_problem := format('it has %s names, and 32 is the most', (select count(*) from jsonb_object_keys(v_filter)));
  else
    for v_name, v_value in select f.key, f.value from jsonb_each(v_filter) as f loop
      v_value := case jsonb_typeof(v_value) when 'array' then v_value else jsonb_build_array(v_value) end;
      v_values := array(select v.value from jsonb_array_elements_text(v_value) as v);
      v_problem := case
        when v_name !~ '^[A-Za-z0-9_.:-]{1,64}$' then format('%s is no name of a dimension', quote_literal(left(v_name, 80)))
        when cardinality(v_values) not between 1 and 100 then format('%s needs a value, or a list of 1 to 100', v_name)
        when exists (select from jsonb_array_elements(v_value) as v where jsonb_typeof(v) not in ('string', 'number', 'boolean'))
          then format('%s needs a text, or a list of texts', v_name)
        when v_name = 'billing_entity_id' and not (select bool_and(tenancy.is_uuid(v)) from unnest(v_values) as v)
          then 'billing_entity_id needs the id of a user or of an organization'
        when v_name = 'billing_entity_type' and not v_values <@ array['user', 'organization']
          then 'billing_entity_type is user or organization'
      end;
      exit when v_problem is not null;
      v_checked := v_checked || jsonb_build_object(v_name, array(select metering.kept_value(v) from unnest(v_values) as v));
    end loop;
  end if;
  if v_problem is not null then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_FILTER: ' || v_problem,
      hint = 'As in {"meter": "api.request", "user_id": ["ada", "ben"]}: meter, user_id, workspace_id, billing_entity_id, billing_entity_type, or any dimension.';
  end if;
  return v_checked;
end;
$$;

-- A name that is no meter may be that of events which no meter counts: if there are any.
create or replace function metering.require_known_meters(p_organization_id uuid, p_bounds timestamptz[], p_filter jsonb)
returns void
language plpgsql
stable
set search_path = ''
as $$
declare
  v_unknown text;
begin
  for v_unknown in
    select f.name
    from jsonb_array_elements_text(p_filter -> 'meter') as f (name)
    where not exists (select from metering.meters m where m.code = f.name)
  loop
    if not exists (
      select from metering.measure(p_organization_id, p_bounds, '{}', jsonb_build_object('meter', v_unknown))
    ) then
      raise exception using
        errcode = 'PT400',
        message = format('INVALID_FILTER: there is no meter %s', left(v_unknown, 128)),
        hint = format('There are %s.', (select string_agg(m.code, ', ' order by m.code) from metering.meters m));
    end if;
  end loop;
end;
$$;

-- Without doubles. p_filter as metering.checked_filter() gives it.
create or replace function metering.checked_group_by(p_group_by text[], p_filter jsonb)
returns text[]
language plpgsql
stable
set search_path = ''
as $$
declare
  v_meters text[] := metering.filter_values(p_filter, 'meter');
  v_kept text[] := array(
    select distinct d.name
    from metering.meter_versions v, unnest(v.group_by) as d (name)
    where v_meters is null or v.meter_code = any (v_meters)
    order by 1
  );
  v_group_by text[] := array(select g.name from unnest(p_group_by) with ordinality as g (name, position) group by 1 order by min(g.position));
  v_unknown text := (select coalesce(g.name, 'null') from unnest(v_group_by) as g (name) where (g.name = any (v_kept)) is not true limit 1);
begin
  if v_unknown is not null then
    raise exception using
      errcode = 'PT400',
      message = format(
        'INVALID_GROUP_BY: %s keeps a dimension %s', coalesce('none of ' || array_to_string(v_meters, ', '), 'no meter'), left(v_unknown, 80)
      ),
      hint = case
        when v_kept = '{}' then 'There is nothing to group by; change_meter() says what a meter keeps.'
        else format('There are %s.', array_to_string(v_kept, ', '))
      end;
  end if;
  return v_group_by;
end;
$$;

grant execute on function metering.checked_filter(jsonb), metering.require_known_meters(uuid, timestamptz[], jsonb),
  metering.checked_group_by(text[], jsonb) to goldleaves_kernel;
