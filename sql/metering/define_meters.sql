-- Meters: what is counted, and how. A meter is what metering.meters says now; each change that alters what it counts is a version, kept
-- here by triggers, so that what was recorded goes on counting as it did. Whoever changes a meter is alone with the rollups until the
-- change is committed: nothing is rolled up by a version that is not there yet.

create or replace function metering.raise_invalid_meter(p_code text, p_problem text, p_hint text default null)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT400',
    message = format('INVALID_METER: %s: %s', left(p_code, 80), p_problem),
    hint = coalesce(p_hint, '');
end;
$$;

-- The first thing that is wrong with a meter, as (problem, hint); null when nothing is. One sentence a rule, before constraints of
-- the table speak in their own way.
create or replace function metering.fault_of_meter(p_meter metering.meters, out problem text, out hint text)
language plpgsql
immutable
set search_path = ''
as $$
declare
  v_reads_text boolean := p_meter.value in ('user_id', 'workspace_id', 'resource_id');
  v_name text;
  v_allowed jsonb;
begin
  if p_meter.code is null or p_meter.code !~ '^[a-z0-9_.]{1,64}$' then
    problem := 'a code has 1 to 64 lowercase letters, digits, _ and .';
  elsif p_meter.aggregation is null
    or p_meter.aggregation not in ('sum', 'count', 'max', 'min', 'latest', 'unique', 'weighted_sum') then
    problem := format('there is no aggregation %s', coalesce(left(p_meter.aggregation, 80), 'null'));
    hint := 'It is one of sum, count, max, min, latest, unique, weighted_sum.';
  elsif p_meter.value is null
    or p_meter.value !~ '^(quantity|weighted_units|user_id|workspace_id|resource_id|dimensions\.[A-Za-z0-9_.:-]{1,64})$' then
    problem := format('no event has a value %s', coalesce(left(p_meter.value, 80), 'null'));
    hint := 'It is quantity, weighted_units, user_id, workspace_id, resource_id, or dimensions.<name>.';
  elsif p_meter.event_name is null and p_meter.value <> 'weighted_units' then
    problem := 'a meter counts the events of a name';
    hint := 'Only one of weighted_units may do without: it then counts every event that weighs something.';
  elsif p_meter.event_name !~ '^[A-Za-z0-9_.:-]{1,128}$' then
    problem := 'the name of an event has 1 to 128 letters, digits and _ . : -';
  elsif p_meter.aggregation = 'unique' and p_meter.value in ('quantity', 'weighted_units') then
    problem := format('unique counts different texts, and %s is a number', p_meter.value);
    hint := 'Let it read user_id, workspace_id, resource_id or dimensions.<name>.';
  elsif p_meter.aggregation not in ('unique', 'count') and v_reads_text then
    problem := format('%s needs numbers, and %s is a text', p_meter.aggregation, p_meter.value);
    hint := 'Let it read quantity, weighted_units or dimensions.<name>; or count different ones with unique.';
  elsif coalesce(length(btrim(p_meter.unit)), 0) not between 1 and 64 then
    problem := 'a unit has 1 to 64 characters';
  elsif coalesce(length(btrim(p_meter.description)), 0) not between 1 and 200 then
    problem := 'a description has 1 to 200 characters: it is what invoices say';
  elsif p_meter.unit_size is null or not (p_meter.unit_size > 0 and p_meter.unit_size < 1e18) then
    problem := 'unit_size is a number above 0: how much of the value is one unit';
  elsif p_meter.max_groups is null or p_meter.max_groups not between 1 and 100000 then
    problem := 'max_groups is between 1 and 100,000';
  elsif p_meter.allow_negative is null then
    problem := 'allow_negative is true or false';
  elsif p_meter.group_by is null or cardinality(p_meter.group_by) > 8 or array_ndims(p_meter.group_by) > 1 then
    problem := 'a meter keeps at most 8 dimensions';
  elsif p_meter.filter is null or jsonb_typeof(p_meter.filter) <> 'object' then
    problem := 'filter is an object of dimensions and the values that count';
    hint := 'As in {"model": ["large", "small"], "region": "eu"}.';
  elsif (select count(*) > 8 from jsonb_object_keys(p_meter.filter)) then
    problem := 'a filter has at most 8 dimensions';
  end if;
  if problem is not null then
    return;
  end if;

  foreach v_name in array p_meter.group_by loop
    if v_name is null or v_name !~ '^[A-Za-z0-9_.:-]{1,64}$' then
      problem := format('%s is no name of a dimension', coalesce(quote_literal(left(v_name, 80)), 'null'));
      hint := 'It has 1 to 64 letters, digits and _ . : -';
      return;
    elsif cardinality(array_positions(p_meter.group_by, v_name)) > 1 then
      problem := format('group_by names %s twice', v_name);
      return;
    end if;
  end loop;

  for v_name, v_allowed in select f.key, f.value from jsonb_each(p_meter.filter) as f loop
    if v_name !~ '^[A-Za-z0-9_.:-]{1,64}$' then
      problem := format('%s is no name of a dimension', quote_literal(left(v_name, 80)));
      hint := 'It has 1 to 64 letters, digits and _ . : -';
      return;
    elsif jsonb_typeof(v_allowed) <> 'string' and (
      jsonb_typeof(v_allowed) <> 'array'
      or jsonb_array_length(v_allowed) not between 1 and 100
      or exists (select from jsonb_array_elements(v_allowed) as a where jsonb_typeof(a) <> 'string')
    ) then
      problem := format('filter: %s needs a text, or a list of 1 to 100 texts', v_name);
      hint := 'Dimensions are compared as texts: "200", not 200.';
      return;
    end if;
  end loop;
end;
$$;

-- Before any row is locked, so that two who change meters cannot wait for each other.
create or replace function metering.change_meters_alone()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform metering.lock_rollups();
  return null;
end;
$$;

create or replace function metering.guard_meters()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_fixed text;
  v_fault record;
  -- The lock is taken: what is rolled up was recorded before.
  v_now timestamptz := clock_timestamp();
begin
  if tg_op = 'DELETE' then
    raise exception using
      errcode = 'PT409',
      message = format('METER_FIXED: %s stays, since usage and invoices speak of it', old.code),
      hint = 'api.delete_meter(), or setting deleted_at, ends what it counts.';
  end if;

  if tg_op = 'INSERT' then
    new.created_at := v_now;
    new.version := 1;
    if new.deleted_at is not null then
      perform metering.raise_invalid_meter(new.code, 'a new meter is not deleted');
    end if;
  else
    if old.deleted_at is not null then
      raise exception using
        errcode = 'PT409',
        message = format('METER_FIXED: %s was deleted', old.code),
        hint = 'Its code is not used again: make a meter with another one.';
    end if;
    select string_agg(c.name, ', ') into v_fixed
    from (
      values
        ('code', new.code is distinct from old.code),
        ('aggregation', new.aggregation is distinct from old.aggregation),
        ('unit', new.unit is distinct from old.unit),
        ('unit_size', new.unit_size is distinct from old.unit_size),
        ('version', new.version is distinct from old.version),
        ('created_at', new.created_at is distinct from old.created_at)
    ) as c (name, is_changed)
    where c.is_changed;
    if v_fixed is not null then
      raise exception using
        errcode = 'PT409',
        message = format('METER_FIXED: %s of the meter %s cannot change', v_fixed, old.code),
        hint = 'Nobody could say what a period means in which it did. Make another meter, and delete this one.';
    end if;
  end if;

  v_fault := metering.fault_of_meter(new);
  if v_fault.problem is not null then
    perform metering.raise_invalid_meter(new.code, v_fault.problem, v_fault.hint);
  end if;
  if tg_op = 'INSERT' then
    if new.effective_from = 'infinity' then
      perform metering.raise_invalid_meter(new.code, 'effective_from is never');
    end if;
    return new;
  end if;

  if new.deleted_at is not null then
    -- Nothing that is recorded from now on counts, whenever it happened.
    new.deleted_at := v_now;
    new.effective_from := old.effective_from;
    new.version := old.version + 1;
  elsif metering.counts_alike(old, new) then
    new.effective_from := old.effective_from;
  else
    -- Whoever does not say from when on means now, or together with the change that is to come.
    if new.effective_from is not distinct from old.effective_from then
      new.effective_from := greatest(v_now, old.effective_from);
    elsif new.effective_from is null or new.effective_from < v_now or new.effective_from = 'infinity' then
      perform metering.raise_invalid_meter(
        new.code, format('effective_from %s is not ahead', new.effective_from), 'Leave it out to change the meter from now on.'
      );
    elsif new.effective_from < old.effective_from then
      perform metering.raise_invalid_meter(
        new.code,
        format('version %s counts from %s on, and this one would before it', old.version, old.effective_from),
        'Leave effective_from out to change both at that moment.'
      );
    end if;
    new.version := old.version + 1;
  end if;
  return new;
end;
$$;

-- Whether two states of a meter count the same, apart from when.
create or replace function metering.counts_alike(p_one metering.meters, p_other metering.meters)
returns boolean
language sql
immutable
set search_path = ''
as $$
  select (p_one.event_name, p_one.value, p_one.filter, p_one.group_by, p_one.max_groups, p_one.allow_negative)
    is not distinct from
    (p_other.event_name, p_other.value, p_other.filter, p_other.group_by, p_other.max_groups, p_other.allow_negative)
$$;

create or replace function metering.keep_meter_version()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  insert into metering.meter_versions (
    meter_code, version, event_name, value, filter, group_by, max_groups, allow_negative, effective_from, counts, created_at
  )
  values (
    new.code, new.version, new.event_name, new.value, new.filter, new.group_by, new.max_groups, new.allow_negative, new.effective_from,
    new.deleted_at is null, case new.version when 1 then new.created_at else coalesce(new.deleted_at, clock_timestamp()) end
  );
  return null;
end;
$$;

-- Versions are what usage is counted by, and nobody is told of them but by their meter: a change of one alone would be seen nowhere.
create or replace function metering.guard_meter_versions()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  -- The trigger of the meter is the one above this.
  if tg_op <> 'INSERT' or pg_trigger_depth() < 2 then
    raise exception using
      errcode = 'PT409',
      message = 'METER_FIXED: versions of meters never change, and only a change of the meter makes another one',
      hint = 'Change the meter: it counts by another version from then on.';
  end if;
  return new;
end;
$$;

alter function metering.change_meters_alone() owner to goldleaves_kernel;
alter function metering.guard_meters() owner to goldleaves_kernel;
alter function metering.keep_meter_version() owner to goldleaves_kernel;
grant execute on function metering.raise_invalid_meter(text, text, text), metering.fault_of_meter(metering.meters),
  metering.counts_alike(metering.meters, metering.meters) to goldleaves_kernel;

create or replace trigger change_alone before insert or update or delete on metering.meters
  for each statement execute function metering.change_meters_alone();
create or replace trigger guard_meters before insert or update or delete on metering.meters
  for each row execute function metering.guard_meters();
create or replace trigger keep_first_version after insert on metering.meters
  for each row execute function metering.keep_meter_version();
create or replace trigger keep_version after update on metering.meters
  for each row when (old.version <> new.version) execute function metering.keep_meter_version();
create or replace trigger guard_meter_versions before insert or update or delete on metering.meter_versions
  for each row execute function metering.guard_meter_versions();
create or replace trigger guard_truncate before truncate on metering.meter_versions
  for each statement execute function metering.guard_meter_versions();

-- What schema api offers to platform_admin, and to nobody else.

create or replace function metering.raise_no_meter(p_code text)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT404',
    message = format('METER_NOT_FOUND: there is no meter %s', coalesce(left(p_code, 80), 'null')),
    hint = format(
      'There are %s.', (select string_agg(m.code, ', ' order by m.code) from metering.meters m where m.deleted_at is null)
    );
end;
$$;

create or replace function metering.create_meter(
  p_code text, p_event_name text, p_aggregation text, p_value text, p_filter jsonb, p_group_by text[], p_max_groups integer,
  p_allow_negative boolean, p_unit text, p_unit_size numeric, p_description text, p_effective_from timestamptz
)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_there metering.meters;
begin
  perform metering.lock_rollups();
  select * into v_there from metering.meters m where m.code = p_code;
  if v_there.code is not null then
    raise exception using
      errcode = 'PT409',
      message = format('METER_EXISTS: there is a meter %s', p_code),
      hint = case
        when v_there.deleted_at is null then 'Change it with change_meter.'
        else 'It was deleted. Its code is not used again, since invoices speak of it.'
      end;
  end if;
  insert into metering.meters (
    code, event_name, aggregation, value, filter, group_by, max_groups, allow_negative, unit, unit_size, description, effective_from
  )
  values (
    p_code, p_event_name, p_aggregation, p_value, p_filter, p_group_by, p_max_groups, p_allow_negative, btrim(p_unit), p_unit_size,
    btrim(p_description), coalesce(p_effective_from, '-infinity')
  );
end;
$$;

-- What is null stays as it is.
create or replace function metering.change_meter(
  p_code text, p_event_name text, p_value text, p_filter jsonb, p_group_by text[], p_max_groups integer, p_allow_negative boolean,
  p_description text, p_effective_from timestamptz
)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  update metering.meters m
  set
    event_name = coalesce(p_event_name, m.event_name),
    value = coalesce(p_value, m.value),
    filter = coalesce(p_filter, m.filter),
    group_by = coalesce(p_group_by, m.group_by),
    max_groups = coalesce(p_max_groups, m.max_groups),
    allow_negative = coalesce(p_allow_negative, m.allow_negative),
    description = coalesce(btrim(p_description), m.description),
    effective_from = coalesce(p_effective_from, m.effective_from)
  where m.code = p_code
    and m.deleted_at is null;
  if not found then
    perform metering.raise_no_meter(p_code);
  end if;
end;
$$;

create or replace function metering.delete_meter(p_code text)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  update metering.meters m
  set deleted_at = clock_timestamp()
  where m.code = p_code
    and m.deleted_at is null;
  if not found then
    perform metering.raise_no_meter(p_code);
  end if;
end;
$$;

alter function metering.create_meter(text, text, text, text, jsonb, text[], integer, boolean, text, numeric, text, timestamptz) owner to goldleaves_kernel;
alter function metering.change_meter(text, text, text, jsonb, text[], integer, boolean, text, timestamptz) owner to goldleaves_kernel;
alter function metering.delete_meter(text) owner to goldleaves_kernel;
grant execute on function metering.raise_no_meter(text) to goldleaves_kernel;
grant execute on function
  metering.create_meter(text, text, text, text, jsonb, text[], integer, boolean, text, numeric, text, timestamptz),
  metering.change_meter(text, text, text, jsonb, text[], integer, boolean, text, timestamptz), metering.delete_meter(text) to platform_admin;
