-- Tables whose changes are usage. A file in sql/ says for each table what is recorded, in the transaction of the change itself, so
-- that it is there exactly once, or not at all with it:
--
--   do $$ begin
--     perform metering.meter_table('app.tasks', resource => 'task');
--   end $$;
--
-- That records task_create, task_update and task_delete: one a row, about its id, with 'task' as unit. Options, all by name:
--   created, updated, deleted   another event instead of each, '{resource}' standing for the resource; null: none
--   becomes              '{"status": {"processed": "doc.processed"}}': an event each time that column becomes that value, by an insert too
--   quantity_column      whose value is the quantity of these events; a row that has none there records nothing
--   storage_column       bytes that the row stores: storage.bytes with what an insert adds, a delete frees and an update changes
--   organization_column  whose row it is: organization_id
--   id_column            what names a row within its organization: id
--   user_column          who did it; else, and where it is null, the user of the request
--   workspace_column     the workspace; context_column: a jsonb column with where it happened, as in events that are sent
-- A row that an update leaves as it was is no event; one that it moves to another organization is deleted there and created here.
-- Metering a table again replaces what was said before; without its line in the file it is not metered any more.
--
-- A table gets a trigger function of its own: what does not depend on the table is settled once, when it is metered, and Postgres keeps
-- the plans. The triggers' argument is what was asked for, so \d shows it, and a change of this file makes the functions anew.

create or replace function metering.meter_table(
  target regclass,
  resource text,
  created text default '{resource}_create',
  updated text default '{resource}_update',
  deleted text default '{resource}_delete',
  becomes jsonb default '{}',
  quantity_column text default null,
  storage_column text default null,
  organization_column text default 'organization_id',
  id_column text default 'id',
  user_column text default null,
  workspace_column text default null,
  context_column text default null
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform metering.attach_meter(target, jsonb_strip_nulls(jsonb_build_object(
    'resource', resource, 'created', replace(created, '{resource}', resource), 'updated', replace(updated, '{resource}', resource),
    'deleted', replace(deleted, '{resource}', resource), 'becomes', becomes, 'quantity', quantity_column, 'storage', storage_column,
    'organization', organization_column, 'id', id_column, 'user', user_column, 'workspace', workspace_column, 'context', context_column
  )));
end;
$$;

-- Takes the triggers away. What the table stores goes off the organizations' storage, see metering.settle_storage().
create or replace function metering.unmeter_table(target regclass)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_function regprocedure := metering.meter_function(target);
begin
  if v_function is null then
    perform metering.refuse_meter(target, 'it is not metered', 'Nothing was changed.');
  end if;
  perform metering.drop_meter_triggers(target, '{insert,update,delete,truncate}');
  execute format('drop function %s', v_function);
end;
$$;

create or replace function metering.refuse_meter(p_table regclass, p_why text, p_hint text default 'Nothing was changed. What can be asked for is listed in sql/metering/meter_table.sql.')
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'invalid_parameter_value',
    message = format('%s cannot be metered like this: %s', p_table, p_why),
    hint = p_hint;
end;
$$;

create or replace function metering.drop_meter_triggers(p_table regclass, p_operations text[])
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_operation text;
begin
  foreach v_operation in array p_operations loop
    if exists (select from pg_catalog.pg_trigger t where t.tgrelid = p_table and t.tgname = 'meter_' || v_operation) then
      execute format('drop trigger meter_%s on %s', v_operation, p_table);
    end if;
  end loop;
end;
$$;

-- Everything that would fail later, in somebody's insert.
create or replace function metering.check_meter(p_table regclass, p_options jsonb)
returns void
language plpgsql
stable
set search_path = ''
as $$
declare
  v_kind "char";
  v_is_partition boolean;
  v_schema text;
  v_option record;
  v_type regtype;
  v_is_not_null boolean;
begin
  select c.relkind, c.relispartition, n.nspname into v_kind, v_is_partition, v_schema
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.oid = p_table;
  if p_table is null then
    raise exception using errcode = 'invalid_parameter_value', message = 'no table was named to be metered';
  elsif v_kind <> 'r' or v_is_partition then
    perform metering.refuse_meter(p_table, format(
      'it is %s',
      case when v_is_partition then 'a partition' else coalesce(
        '{"p": "a partitioned table", "v": "a view", "m": "a materialized view", "f": "a foreign table"}'::jsonb ->> v_kind::text, 'no table'
      ) end
    ), 'Meter the plain table that the rows are in.');
  elsif v_schema in ('metering', 'billing', 'stripe', 'notifications', 'audit', 'ops', 'tenancy', 'yoyo', 'pg_catalog', 'information_schema') then
    perform metering.refuse_meter(p_table, format('schema %s is not of tenants'' tables', v_schema));
  elsif p_options ->> 'resource' is null or p_options ->> 'resource' !~ '^[A-Za-z0-9_.:-]{1,64}$' then
    perform metering.refuse_meter(p_table, 'resource needs a name of 1 to 64 letters, digits and _ . : -');
  elsif coalesce(jsonb_typeof(p_options -> 'becomes'), '') <> 'object'
    or exists (
      select from jsonb_each(p_options -> 'becomes') c
      where jsonb_typeof(c.value) <> 'object'
        or exists (select from jsonb_each(case when jsonb_typeof(c.value) = 'object' then c.value else '{}' end) v where jsonb_typeof(v.value) <> 'string')
    )
  then
    perform metering.refuse_meter(p_table, 'becomes needs an object as {"status": {"processed": "doc.processed"}}');
  elsif not p_options ?| '{created,updated,deleted,storage}' and p_options -> 'becomes' = '{}' then
    perform metering.refuse_meter(p_table, 'there is nothing to record');
  end if;

  for v_option in
    select e.name
    from (
      select p_options ->> k.key as name from (values ('created'), ('updated'), ('deleted')) as k (key)
      union all
      select v.value from jsonb_each(p_options -> 'becomes') c, jsonb_each_text(c.value) v
    ) as e
    where e.name !~ '^[A-Za-z0-9_.:-]{1,128}$'
  loop
    perform metering.refuse_meter(p_table, format('%s is no name of an event, which has 1 to 128 letters, digits and _ . : -', quote_literal(v_option.name)));
  end loop;

  for v_option in
    select o.key, o.value as name
    from jsonb_each_text(p_options) o
    where o.key in ('organization', 'id', 'quantity', 'storage', 'user', 'workspace', 'context')
    union all
    select 'becomes', c.key from jsonb_each(p_options -> 'becomes') c
    order by 1, 2
  loop
    select a.atttypid, a.attnotnull into v_type, v_is_not_null
    from pg_catalog.pg_attribute a
    where a.attrelid = p_table and a.attname = v_option.name and a.attnum > 0 and not a.attisdropped;
    if not found then
      perform metering.refuse_meter(p_table, format('it has no column %s (%s)', quote_ident(v_option.name),
        case v_option.key when 'becomes' then 'becomes' else v_option.key || '_column' end),
        case v_option.key when 'organization' then 'Adopt the table first, or name the column that says whose a row is.' else 'Name one that it has.' end);
    elsif v_option.key = 'organization' and (v_type <> 'uuid'::regtype or not v_is_not_null) then
      perform metering.refuse_meter(p_table, format('column %s has to be uuid not null to say whose a row is', quote_ident(v_option.name)));
    elsif v_option.key = 'quantity' and v_type not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype) then
      perform metering.refuse_meter(p_table, format('column %s is %s, and a quantity is an integer or numeric', quote_ident(v_option.name), v_type));
    elsif v_option.key = 'storage' and v_type not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype) then
      perform metering.refuse_meter(p_table, format('column %s is %s, and bytes are an integer', quote_ident(v_option.name), v_type));
    elsif v_option.key = 'context' and v_type <> 'jsonb'::regtype then
      perform metering.refuse_meter(p_table, format('column %s is %s, and a context is jsonb', quote_ident(v_option.name), v_type));
    end if;
  end loop;

  -- By this key rows before an update are compared with those after it.
  if not exists (
    select
    from pg_catalog.pg_index i
    where i.indrelid = p_table
      and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null
      and (
        select array_agg(a.attname order by a.attname)
        from pg_catalog.pg_attribute a
        where a.attrelid = p_table and a.attnum = any ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
      ) <@ array[p_options ->> 'organization', p_options ->> 'id']::name[]
  ) or not (select a.attnotnull from pg_catalog.pg_attribute a where a.attrelid = p_table and a.attname = p_options ->> 'id') then
    perform metering.refuse_meter(p_table, format('%s does not name one row: it needs a unique key over (%s, %s), not null',
      quote_ident(p_options ->> 'id'), quote_ident(p_options ->> 'organization'), quote_ident(p_options ->> 'id')));
  end if;

  if exists (
    select
    from pg_catalog.pg_trigger t
    where t.tgname = 'meter_update'
      and t.tgrelid <> p_table
      and p_options ? 'storage'
      and metering.meter_options(t.tgrelid) @> jsonb_build_object('resource', p_options -> 'resource')
      and metering.meter_options(t.tgrelid) ? 'storage'
  ) then
    perform metering.refuse_meter(p_table, format('another table stores bytes as %s', p_options ->> 'resource'), 'Give each a resource of its own.');
  end if;
end;
$$;

create or replace function metering.attach_meter(p_table regclass, p_options jsonb)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_before jsonb := metering.meter_options(p_table);
  v_old_function regprocedure := metering.meter_function(p_table);
  v_function text;
  v_operation record;
begin
  perform metering.check_meter(p_table, p_options);
  v_function := metering.make_meter_function(p_table, p_options);

  for v_operation in
    select o.name, o.rows, exists (select from metering.kinds_of_event(p_options, upper(o.name))) as is_metered
    from (
      values ('insert', 'new table as new_rows'), ('update', 'old table as old_rows new table as new_rows'), ('delete', 'old table as old_rows')
    ) as o (name, rows)
  loop
    if v_operation.is_metered then
      execute format(
        'create or replace trigger meter_%s after %1$s on %s referencing %s for each statement execute function %s(%L)',
        v_operation.name, p_table, v_operation.rows, v_function, p_options
      );
    else
      perform metering.drop_meter_triggers(p_table, array[v_operation.name]);
    end if;
  end loop;

  if p_options ?| '{deleted,storage}' then
    execute format(
      'create or replace trigger meter_truncate before truncate on %s for each statement execute function metering.refuse_unmetered_truncate()', p_table
    );
  else
    perform metering.drop_meter_triggers(p_table, '{truncate}');
  end if;
  if v_old_function is not null and v_old_function <> (v_function || '()')::regprocedure then
    execute format('drop function %s', v_old_function);
  end if;

  if p_options ? 'storage' and (v_before is null or (v_before ->> 'storage', v_before ->> 'resource', v_before ->> 'organization')
    is distinct from (p_options ->> 'storage', p_options ->> 'resource', p_options ->> 'organization'))
  then
    perform metering.count_stored_rows(p_table, p_options);
  end if;
end;
$$;

-- What rows store already, for metering.settle_storage(): a load grants the kernel its tables last. The lock that the triggers took keeps
-- writers out until all of it is committed.
create or replace function metering.count_stored_rows(p_table regclass, p_options jsonb)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_is_hidden boolean := row_security_active(p_table);
begin
  -- Forced row security hides the rows from their owner, too.
  if v_is_hidden then
    execute format('alter table %s no force row level security', p_table);
  end if;
  execute format(
    'insert into metering.stored_resources as r (resource, began_at, counted_at, counted)
    select $1, c.at, c.at, coalesce(jsonb_object_agg(s.organization, s.bytes) filter (where s.bytes <> 0), ''{}'')
    from (select clock_timestamp() as at) as c
    left join (select %1$I as organization, sum(%2$I) as bytes from %3$s group by 1) as s on true
    group by c.at
    on conflict (resource) do update set counted_at = excluded.counted_at, counted = excluded.counted',
    p_options ->> 'organization', p_options ->> 'storage', p_table
  )
  using p_options ->> 'resource';
  if v_is_hidden then
    execute format('alter table %s force row level security', p_table);
  end if;
end;
$$;

create or replace function metering.refuse_unmetered_truncate()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('METERED_TABLE: %I.%I is never truncated, what it held would stay on the bill', tg_table_schema, tg_table_name),
    hint = 'Delete the rows, or call metering.unmeter_table() first.';
end;
$$;
