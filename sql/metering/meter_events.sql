-- What the triggers of a metered table do, and the text of the function that does it: see meter_table.sql.

-- What was asked for, from the argument of a trigger that is there; null where none is.
create or replace function metering.meter_options(p_table regclass)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select convert_from(substr(t.tgargs, 1, octet_length(t.tgargs) - 1), 'UTF8')::jsonb
  from pg_catalog.pg_trigger t
  where t.tgrelid = p_table
    and t.tgname = 'meter_update'
    and t.tgnargs = 1
$$;

create or replace function metering.meter_function(p_table regclass)
returns regprocedure
language sql
stable
set search_path = ''
as $$ select t.tgfoid::regprocedure from pg_catalog.pg_trigger t where t.tgrelid = p_table and t.tgname = 'meter_update' and t.tgnargs = 1 $$;

-- Which request made the change, when PostgREST did.
create or replace function metering.request_dimensions()
returns jsonb
language sql
stable
set search_path = ''
as $$
  select case
    when nullif(current_setting('request.path', true), '') is null then '{}'::jsonb
    else jsonb_build_object('endpoint', '/api/v1' || current_setting('request.path', true), 'method', current_setting('request.method', true))
  end
$$;

-- What all events of a statement have in common. Of one organization it is payer and weights (in the order of p_event_names); of several,
-- terms has both for each of them, and payer and weights are null. An organization that is being deleted has neither: no event is left of it.
-- id_start: of a UUIDv7, whose last 32 bits number the events of the statement. Where Postgres has to ask the system for each random number,
-- an id of its own for each event takes longer than to write the event.
create or replace function metering.begin_table_events(
  p_organization_ids uuid[], p_event_names text[],
  out is_known boolean, out occurred_at timestamptz, out id_start text, out generation integer, out user_id text, out request_id text, out dimensions jsonb,
  out payer uuid, out weights numeric[], out terms jsonb
)
language plpgsql
volatile
set search_path = ''
as $$
begin
  generation := metering.recording_generation();
  -- now() is the start of the transaction, which may lie in a period that has been finalized since; under the lock it cannot.
  perform billing.share_period_locks(p_organization_ids);
  occurred_at := clock_timestamp();
  id_start := left(ops.new_id()::text, 28);
  perform metering.ensure_partition(metering.month_of(occurred_at));
  user_id := tenancy.current_user_id()::text;
  request_id := nullif(current_setting('app.request_id', true), '');
  dimensions := metering.request_dimensions();

  if cardinality(p_organization_ids) = 1 then
    -- Apart, since Postgres would plan them together anew for each statement.
    select true, billing.payer(o.billing_user_id, o.billing_start_at, begin_table_events.occurred_at) into is_known, payer
    from tenancy.organizations o
    where o.id = p_organization_ids[1];
    weights := array(
      select w.weight
      from unnest(p_event_names) with ordinality as n (name, position)
      cross join lateral metering.weight_of(p_organization_ids[1], n.name, begin_table_events.occurred_at) w
      order by n.position
    );
  else
    select
      true,
      jsonb_object_agg(o.id, jsonb_build_object(
        'payer', billing.payer(o.billing_user_id, o.billing_start_at, begin_table_events.occurred_at),
        'weights', array(
          select w.weight
          from unnest(p_event_names) with ordinality as n (name, position)
          cross join lateral metering.weight_of(o.id, n.name, begin_table_events.occurred_at) w
          order by n.position
        )
      ))
    into is_known, terms
    from tenancy.organizations o
    where o.id = any (p_organization_ids)
    having count(*) > 0;
  end if;
end;
$$;

grant execute on function metering.request_dimensions(), metering.begin_table_events(uuid[], text[]), metering.meter_options(regclass)
  to goldleaves_kernel;

-- A column of a row as it is before (o) or after (n) an operation; null where there is none to read. An update reads both sides from one
-- list, by their position in p_columns.
create or replace function metering.side_of_row(p_operation text, p_side text, p_columns text[], p_column text)
returns text
language sql
immutable
set search_path = ''
as $$
  select case
    when p_column is null then null
    when p_operation = 'UPDATE' then format('c.%s%s', p_side, array_position(p_columns, p_column))
    else format('%s.%I', p_side, p_column)
  end
$$;

-- The columns of a metered table that its events are made of.
create or replace function metering.metered_columns(p_options jsonb)
returns text[]
language sql
immutable
set search_path = ''
as $$
  select array_agg(c.name order by c.name)
  from (
    select o.value as name
    from jsonb_each_text(p_options) o
    where o.key in ('organization', 'id', 'quantity', 'storage', 'user', 'workspace', 'context')
    union
    select jsonb_object_keys(p_options -> 'becomes')
  ) as c
$$;

-- What an operation records: a row a kind of event, with the SQL of its quantity and of the rows that have it. is_counted: its quantity is
-- a column of the table, and may be none that counts.
create or replace function metering.kinds_of_event(p_options jsonb, p_operation text)
returns table (event_name text, side text, quantity text, unit text, condition text, is_counted boolean, is_stored boolean)
language plpgsql
immutable
set search_path = ''
as $$
declare
  v_columns text[] := metering.metered_columns(p_options);
  v_before text := metering.side_of_row(p_operation, 'o', v_columns, p_options ->> 'organization');
  v_after text := metering.side_of_row(p_operation, 'n', v_columns, p_options ->> 'organization');
  v_new_quantity text := coalesce(metering.side_of_row(p_operation, 'n', v_columns, p_options ->> 'quantity') || '::numeric', '1::numeric');
  v_old_quantity text := coalesce(metering.side_of_row(p_operation, 'o', v_columns, p_options ->> 'quantity') || '::numeric', '1::numeric');
  v_new_bytes text := 'coalesce(' || metering.side_of_row(p_operation, 'n', v_columns, p_options ->> 'storage') || ', 0)::numeric';
  v_old_bytes text := 'coalesce(' || metering.side_of_row(p_operation, 'o', v_columns, p_options ->> 'storage') || ', 0)::numeric';
  v_is_update boolean := p_operation = 'UPDATE';
begin
  return query
    select k.*
    from (
      -- A row that is there after an update and was not before, in this organization, has come from another one.
      select p_options ->> 'created', 'n', v_new_quantity, p_options ->> 'resource',
        case when v_is_update then v_before || ' is null' else 'true' end, p_options ? 'quantity', false
      where p_operation <> 'DELETE' and p_options ? 'created'
      union all
      select p_options ->> 'deleted', 'o', v_old_quantity, p_options ->> 'resource',
        case when v_is_update then v_after || ' is null' else 'true' end, p_options ? 'quantity', false
      where p_operation <> 'INSERT' and p_options ? 'deleted'
      union all
      select p_options ->> 'updated', 'n', v_new_quantity, p_options ->> 'resource', v_before || ' is not null and ' || v_after || ' is not null and c.differs', p_options ? 'quantity', false
      where v_is_update and p_options ? 'updated'
      union all
      select v.value, 'n', v_new_quantity, p_options ->> 'resource',
        format('%s::text = %L', metering.side_of_row(p_operation, 'n', v_columns, c.key), v.key)
          || case when v_is_update then format(' and %s::text is distinct from %L', metering.side_of_row(p_operation, 'o', v_columns, c.key), v.key) else '' end,
        p_options ? 'quantity', false
      from jsonb_each(p_options -> 'becomes') c, jsonb_each_text(c.value) v
      where p_operation <> 'DELETE'
      union all
      select 'storage.bytes', 'n', case when v_is_update then format('%s - %s', v_new_bytes, v_old_bytes) else v_new_bytes end, 'byte',
        case when v_is_update then format('%s is not null and %s <> %s', v_after, v_new_bytes, v_old_bytes) else v_new_bytes || ' <> 0' end, false, true
      where p_operation <> 'DELETE' and p_options ? 'storage'
      union all
      select 'storage.bytes', 'o', '-' || v_old_bytes, 'byte',
        case when v_is_update then format('%s is null and %s <> 0', v_after, v_old_bytes) else v_old_bytes || ' <> 0' end, false, true
      where p_operation <> 'INSERT' and p_options ? 'storage'
    ) as k;
end;
$$;

-- The statements of one operation. One insert for all kinds of events, since each would be looked at by the guard of the facts.
create or replace function metering.operation_text(p_options jsonb, p_operation text)
returns text
language plpgsql
immutable
set search_path = ''
as $$
declare
  v_columns text[] := metering.metered_columns(p_options);
  v_rows text := case p_operation when 'INSERT' then 'new_rows n' when 'DELETE' then 'old_rows o' else 'changed c' end;
  v_changed text := '';
  v_names text[];
  v_events text;
  v_rejects text;
begin
  select
    array_agg(k.event_name order by k.position),
    string_agg(
      format(
        E'      select %s as organization_id, %s as kind, %L as event_name, %s as quantity, %L as unit,\n'
        '        %s as user_id, %s as workspace_id, left(%s::text, 256) as resource_id, %s as context, %s as is_stored\n      from %s\n      where %s%s',
        row_column.organization, k.position, k.event_name, k.quantity, k.unit,
        coalesce('left(' || row_column.by || '::text, 256)', 'null::text'), coalesce('left(' || row_column.workspace || '::text, 256)', 'null::text'),
        row_column.id,
        case
          when row_column.context is null then 'null::jsonb'
          else format('case when jsonb_typeof(%1$s) = ''object'' and pg_column_size(%1$s) <= 8192 then %1$s end', row_column.context)
        end,
        k.is_stored::text, v_rows, k.condition,
        case when k.is_counted then format(' and %1$s >= 0 and %1$s < 1e18', k.quantity) else '' end
      ),
      E'\n      union all\n' order by k.position
    ),
    string_agg(
      format(
        E'      select %s as organization_id, %L as event_name, %s as quantity, left(%s::text, 256) as resource_id\n      from %s\n      where %s and not (%3$s >= 0 and %3$s < 1e18)',
        row_column.organization, k.event_name, k.quantity, row_column.id, v_rows, k.condition
      ),
      E'\n      union all\n' order by k.position
    ) filter (where k.is_counted)
  into v_names, v_events, v_rejects
  from (select *, row_number() over () as position from metering.kinds_of_event(p_options, p_operation)) as k
  cross join lateral (
    select
      max(s.text) filter (where s.key = 'organization') as organization,
      max(s.text) filter (where s.key = 'id') as id,
      max(s.text) filter (where s.key = 'user') as by,
      max(s.text) filter (where s.key = 'workspace') as workspace,
      max(s.text) filter (where s.key = 'context') as context
    from (
      select o.key, metering.side_of_row(p_operation, k.side, v_columns, o.value) as text
      from jsonb_each_text(p_options) o
      where o.key in ('organization', 'id', 'user', 'workspace', 'context')
    ) as s
  ) as row_column;

  if p_operation = 'UPDATE' then
    select format(
      E'    with changed as materialized (\n      select %s%s\n      from old_rows o\n      full join new_rows n on n.%I = o.%I and n.%I = o.%I\n    )\n',
      string_agg(format('o.%1$I as o%2$s, n.%1$I as n%2$s', c.name, c.position), ', ' order by c.position),
      case when p_options ? 'updated' then ', o operator(pg_catalog.*<>) n as differs' else '' end,
      p_options ->> 'organization', p_options ->> 'organization', p_options ->> 'id', p_options ->> 'id'
    )
    into v_changed
    from unnest(v_columns) with ordinality as c (name, position);
  end if;

  return format(
    E'    v_organizations := array(%s);\n'
    '    if v_organizations = ''{}'' then\n      return null;\n    end if;\n'
    '    select * into v_common from metering.begin_table_events(v_organizations, %L);\n'
    '    if v_common.is_known is null then\n      return null;\n    end if;\n%s'
    '%s    insert into metering.usage_events (\n'
    '      organization_id, occurred_at, id, source, event_name, quantity, weighted_units, unit, user_id, workspace_id, resource_id, request_id,\n'
    '      dimensions, context, payer_user_id, recorded_generation\n    )\n'
    '    select\n      e.organization_id, v_common.occurred_at, (v_common.id_start || lpad(to_hex(row_number() over ()), 8, ''0''))::uuid, ''trigger'', e.event_name, e.quantity,\n'
    '      e.quantity * case when v_common.terms is null then v_common.weights[e.kind]\n'
    '        else (v_common.terms -> e.organization_id::text -> ''weights'' ->> (e.kind - 1)::integer)::numeric end,\n'
    '      e.unit, coalesce(e.user_id, v_common.user_id), e.workspace_id, e.resource_id, v_common.request_id,\n'
    '      case when e.is_stored then v_common.dimensions || %L else v_common.dimensions end, e.context,\n'
    '      case when v_common.terms is null then v_common.payer else (v_common.terms -> e.organization_id::text ->> ''payer'')::uuid end,\n'
    '      v_common.generation\n    from (\n%s\n    ) as e\n'
    '    where v_common.terms is null or v_common.terms ? e.organization_id::text;\n'
    '    perform billing.enforce_quotas(v_organizations, %L, v_common.occurred_at, v_common.id_start);\n',
    case p_operation
      when 'INSERT' then format('select n.%I from new_rows n group by 1', p_options ->> 'organization')
      when 'DELETE' then format('select o.%I from old_rows o group by 1', p_options ->> 'organization')
      else format('select o.%1$I from old_rows o union select n.%1$I from new_rows n', p_options ->> 'organization')
    end,
    v_names,
    case when v_rejects is null then '' else format(
      E'%s    insert into metering.rejected_events (organization_id, source, code, message, event)\n'
      '    select e.organization_id, ''trigger'', ''INVALID_EVENT'', ''quantity is not at least 0 and below 1e18'', jsonb_build_object(\n'
      '      ''id'', ops.new_id(), ''event'', e.event_name, ''quantity'', e.quantity::text, ''unit'', %L, ''time'', v_common.occurred_at,\n'
      '      ''organization_id'', e.organization_id, ''user_id'', v_common.user_id, ''resource_id'', e.resource_id)\n    from (\n%s\n    ) as e;\n',
      v_changed, p_options ->> 'resource', v_rejects
    ) end,
    v_changed,
    jsonb_build_object('resource', p_options -> 'resource'),
    v_events,
    v_names
  );
end;
$$;

-- Makes the trigger function of a table, or makes it anew, and gives its name.
create or replace function metering.make_meter_function(p_table regclass, p_options jsonb)
returns text
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_name text;
  v_body text;
  v_may_create boolean := has_schema_privilege('goldleaves_kernel', 'metering', 'create');
begin
  select format('meter_%s_%s', n.nspname, c.relname) into v_name
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.oid = p_table;
  -- Names end after 63 bytes, and a.b_c is not a_b.c.
  if octet_length(v_name) > 63 or exists (
    select from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid
    where p.proname = v_name and p.pronamespace = 'metering'::regnamespace and t.tgrelid <> p_table
  ) then
    v_name := 'meter_' || md5(p_table::text);
  end if;

  select string_agg(
    format(E'  %s tg_op = %L then\n%s', case o.position when 1 then 'if' else 'elsif' end, o.operation, metering.operation_text(p_options, o.operation)),
    '' order by o.position
  )
  into v_body
  from (values (1, 'INSERT'), (2, 'UPDATE'), (3, 'DELETE')) as o (position, operation)
  where exists (select from metering.kinds_of_event(p_options, o.operation));

  execute format(
    E'create or replace function metering.%I()\nreturns trigger\nlanguage plpgsql\nvolatile\nsecurity definer\nset search_path = ''''\nas %L',
    v_name,
    E'\n-- Made by metering.meter_table().\ndeclare\n  v_organizations uuid[];\n  v_common record;\nbegin\n' || v_body || E'  end if;\n  return null;\nend;\n'
  );
  execute format('revoke all on function metering.%I() from public', v_name);
  -- An owner needs CREATE on the schema at the moment it is given a function.
  if not v_may_create then
    grant create on schema metering to goldleaves_kernel;
  end if;
  execute format('alter function metering.%I() owner to goldleaves_kernel', v_name);
  if not v_may_create then
    revoke create on schema metering from goldleaves_kernel;
  end if;
  return format('metering.%I', v_name);
end;
$$;

-- A change of what is above reaches the functions of all metered tables.
do $$
begin
  perform metering.make_meter_function(t.tgrelid, metering.meter_options(t.tgrelid))
  from pg_catalog.pg_trigger t
  where t.tgname = 'meter_update'
    and t.tgnargs = 1;
end
$$;
