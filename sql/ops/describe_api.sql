-- What schema api is, read from the catalog: the OpenAPI document and the TypeScript types are made of it. PostgREST's own
-- description, at its root, knows no nullability, lists writes that nobody is granted, and shows each role another part.

-- Which column of which table a view's column is. The parsed query says so for a column that is taken as it is; PostgREST finds
-- foreign keys of views in the same way. A column of a subquery may have the same place and name: then it is not told. is_optional:
-- there is an outer join, so that a column may be null whatever its table says.
create or replace function ops.view_columns()
returns table (view_id oid, attnum smallint, table_id oid, table_attnum smallint, is_optional boolean)
language sql
stable
set search_path = ''
as $$
  with views as (
    select c.oid, r.ev_action::text as query
    from pg_catalog.pg_class c
    join pg_catalog.pg_rewrite r on r.ev_class = c.oid and r.ev_type = '1'
    where c.relnamespace = 'api'::regnamespace
      and c.relkind = 'v'
  ),
  targets as (
    select
      v.oid,
      t.found[1]::smallint as attnum,
      t.found[2] as name,
      t.found[3]::oid as table_id,
      t.found[4]::smallint as table_attnum,
      v.query ~ ':jointype [123]' as is_optional
    from views v,
      regexp_matches(v.query, ':resno (\d+) :resname (\S+) :ressortgroupref \d+ :resorigtbl (\d+) :resorigcol (\d+)', 'g') as t (found)
  )
  select t.oid, t.attnum, min(t.table_id), min(t.table_attnum), bool_or(t.is_optional)
  from targets t
  join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum = t.attnum and a.attname = t.name
  group by t.oid, t.attnum
  having count(distinct (t.table_id, t.table_attnum)) = 1 and min(t.table_id) <> 0
$$;

-- The texts that `check (column in ('a', 'b'))` or an enum type allow; null when anything goes.
create or replace function ops.allowed_values(p_table_id oid, p_attnum smallint, p_type_id oid)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select coalesce(
    (select jsonb_agg(e.enumlabel order by e.enumsortorder) from pg_catalog.pg_enum e where e.enumtypid = p_type_id),
    (
      select jsonb_agg(replace(v.found[1], '''''', '''') order by v.position)
      from pg_catalog.pg_constraint c,
        regexp_matches(pg_get_constraintdef(c.oid), '''((?:[^'']|'''')*)''::text', 'g') with ordinality as v (found, position)
      where c.conrelid = p_table_id
        and c.contype = 'c'
        and c.conkey = array[p_attnum]
        and pg_get_constraintdef(c.oid) ~ '^CHECK \(\("?\w+"? = ANY \(ARRAY\[(''([^'']|'''')*''::text(, )?)+\]\)\)\)( NOT VALID)?$'
    )
  )
$$;

create or replace function ops.describe_api()
returns jsonb
language sql
stable
set search_path = ''
as $$
  with roles as (
    select unnest(array['anon', 'member', 'service', 'platform_admin']) as role
  ),
  origins as materialized (
    select * from ops.view_columns()
  ),
  columns as (
    select
      a.attrelid as view_id,
      jsonb_build_object(
        'name', a.attname,
        'type', format_type(a.atttypid, a.atttypmod),
        'comment', col_description(a.attrelid, a.attnum),
        -- null: Postgres cannot know, since the column is computed or comes from an outer join.
        'nullable', case when not o.is_optional then not b.attnotnull end,
        'has_default', b.atthasdef or b.attidentity <> '' or not b.attnotnull,
        'values', ops.allowed_values(o.table_id, o.table_attnum, a.atttypid),
        'insert', (
          select coalesce(jsonb_agg(r.role), '[]')
          from roles r
          where has_column_privilege(r.role, a.attrelid, a.attnum, 'insert') and pg_relation_is_updatable(a.attrelid, true) & 8 <> 0
        ),
        'update', (
          select coalesce(jsonb_agg(r.role), '[]')
          from roles r
          where has_column_privilege(r.role, a.attrelid, a.attnum, 'update') and pg_column_is_updatable(a.attrelid, a.attnum, true)
        )
      ) as described,
      a.attnum
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_class v on v.oid = a.attrelid and v.relnamespace = 'api'::regnamespace and v.relkind = 'v'
    left join origins o on o.view_id = a.attrelid and o.attnum = a.attnum
    left join pg_catalog.pg_attribute b on b.attrelid = o.table_id and b.attnum = o.table_attnum
    where a.attnum > 0
      and not a.attisdropped
  ),
  relationships as (
    select
      mine.view_id,
      jsonb_build_object(
        'name', f.conname,
        'columns', mine.names,
        'referenced', v.relname,
        'referenced_columns', theirs.names,
        'one_to_one', exists (
          select from pg_catalog.pg_constraint u
          where u.conrelid = f.conrelid and u.contype in ('p', 'u') and u.conkey <@ f.conkey
        )
      ) as described,
      f.conname,
      v.relname
    from pg_catalog.pg_constraint f,
      lateral (
        select o.view_id, jsonb_agg(a.attname order by k.position) as names
        from unnest(f.conkey) with ordinality as k (attnum, position)
        join origins o on o.table_id = f.conrelid and o.table_attnum = k.attnum
        join pg_catalog.pg_attribute a on a.attrelid = o.view_id and a.attnum = o.attnum
        group by o.view_id
        having count(*) = cardinality(f.conkey)
      ) as mine,
      lateral (
        select o.view_id, jsonb_agg(a.attname order by k.position) as names
        from unnest(f.confkey) with ordinality as k (attnum, position)
        join origins o on o.table_id = f.confrelid and o.table_attnum = k.attnum
        join pg_catalog.pg_attribute a on a.attrelid = o.view_id and a.attnum = o.attnum
        group by o.view_id
        having count(*) = cardinality(f.confkey)
      ) as theirs,
      pg_catalog.pg_class v
    where f.contype = 'f'
      and f.conparentid = 0
      and v.oid = theirs.view_id
  ),
  views as (
    select jsonb_build_object(
      'name', v.relname,
      'comment', obj_description(v.oid, 'pg_class'),
      'select', (select coalesce(jsonb_agg(r.role), '[]') from roles r where has_table_privilege(r.role, v.oid, 'select')),
      'delete', (
        select coalesce(jsonb_agg(r.role), '[]')
        from roles r
        where has_table_privilege(r.role, v.oid, 'delete') and pg_relation_is_updatable(v.oid, true) & 16 <> 0
      ),
      'columns', (select jsonb_agg(c.described order by c.attnum) from columns c where c.view_id = v.oid),
      'relationships', (
        select coalesce(jsonb_agg(s.described order by s.conname, s.relname), '[]') from relationships s where s.view_id = v.oid
      )
    ) as described, v.relname
    from pg_catalog.pg_class v
    where v.relnamespace = 'api'::regnamespace
      and v.relkind = 'v'
  ),
  functions as (
    select jsonb_build_object(
      'name', p.proname,
      'comment', obj_description(p.oid, 'pg_proc'),
      'read_only', p.provolatile <> 'v',
      'execute', (select coalesce(jsonb_agg(r.role), '[]') from roles r where has_function_privilege(r.role, p.oid, 'execute')),
      'arguments', (
        select coalesce(
          jsonb_agg(
            jsonb_build_object(
              'name', p.proargnames[i.position],
              'type', format_type(i.type_id, null),
              'required', i.position <= p.pronargs - p.pronargdefaults
            )
            order by i.position
          ),
          '[]'
        )
        from unnest(p.proargtypes::oid[]) with ordinality as i (type_id, position)
      ),
      'set', p.proretset,
      'returns', format_type(p.prorettype, null),
      'returns_view', (
        select v.relname
        from pg_catalog.pg_type t
        join pg_catalog.pg_class v on v.oid = t.typrelid
        where t.oid = p.prorettype and v.relnamespace = 'api'::regnamespace
      ),
      'returns_columns', (
        select jsonb_agg(
          jsonb_build_object('name', p.proargnames[o.position], 'type', format_type(o.type_id, null)) order by o.position
        )
        from unnest(p.proallargtypes) with ordinality as o (type_id, position)
        where p.proargmodes[o.position] in ('t', 'o', 'b')
      )
    ) as described, p.proname
    from pg_catalog.pg_proc p
    where p.pronamespace = 'api'::regnamespace
  )
  select jsonb_build_object(
    'comment', obj_description('api'::regnamespace, 'pg_namespace'),
    'views', (select coalesce(jsonb_agg(v.described order by v.relname), '[]') from views v),
    'functions', (select coalesce(jsonb_agg(f.described order by f.proname), '[]') from functions f)
  )
$$;

grant execute on function ops.view_columns(), ops.allowed_values(oid, smallint, oid), ops.describe_api() to sidecar;
grant execute on function ops.allowed_values(oid, smallint, oid) to goldleaves_kernel;
