-- The steps by which tables become tenants' tables, in the order in which they run, each with its way back. Of a table that is one
-- already there are none. They come from the catalog alone, and are statements that a migration could hold.

-- A name for something new that is not taken yet. Postgres cuts names at 63 bytes, so the base is made shorter and not the ending.
create or replace function tenancy.free_name(p_table regclass, p_base text, p_ending text)
returns text
language plpgsql
stable
set search_path = ''
as $$
declare
  v_base text := p_base;
  v_number integer := 1;
  v_ending text := p_ending;
begin
  loop
    while octet_length(v_base || v_ending) > 63 loop
      v_base := left(v_base, -1);
    end loop;
    exit when not exists (
      select from pg_class x join pg_class t on t.relnamespace = x.relnamespace
      where t.oid = p_table and x.relname = v_base || v_ending
      union all
      select from pg_constraint where conrelid = p_table and conname = v_base || v_ending
    );
    v_number := v_number + 1;
    v_ending := p_ending || v_number;
  end loop;
  return v_base || v_ending;
end;
$$;

create or replace function tenancy.organization_column_steps(p_table regclass, p_organization_id uuid)
returns table (phase integer, statement text, undo text, note text)
language sql
stable
set search_path = ''
as $$
  with existing as (
    select a.attnotnull, pg_get_expr(d.adbin, d.adrelid) as expression
    from pg_attribute a
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = p_table and a.attname = 'organization_id' and not a.attisdropped
  )
  -- A constant default fills the rows that are there without writing one of them, and without firing a trigger.
  select 30,
    format(
      'alter table %s add column organization_id uuid not null default %s', p_table,
      coalesce(quote_literal(p_organization_id) || '::uuid', 'tenancy.current_org()')
    ),
    format('alter table %s drop column organization_id', p_table),
    case when p_organization_id is null then 'There are no rows yet.' else 'All rows that are there go to this organization.' end
  where not exists (select from existing)
  union all
  select 31, format('alter table %s alter column organization_id set not null', p_table),
    format('alter table %s alter column organization_id drop not null', p_table), null
  from existing where not attnotnull
  union all
  select 32, format('alter table %s alter column organization_id set default tenancy.current_org()', p_table),
    case
      when e.attnotnull is null then null -- the column goes
      when e.expression is null then format('alter table %s alter column organization_id drop default', p_table)
      else format('alter table %s alter column organization_id set default %s', p_table, e.expression)
    end,
    null
  from (select 1) as one
  left join existing e on true
  where e.expression is distinct from 'tenancy.current_org()'
    and (e.attnotnull is not null or p_organization_id is not null)
  union all
  select 60,
    format('alter table %s add constraint %I foreign key (organization_id) references tenancy.organizations (id) on delete cascade', p_table, n.name),
    format('alter table %s drop constraint %I', p_table, n.name), null
  from pg_class c, tenancy.free_name(p_table, c.relname, '_organization_id_fkey') as n (name)
  where c.oid = p_table
    and not exists (
      select from pg_constraint k
      where k.conrelid = p_table and k.contype = 'f' and k.confrelid = 'tenancy.organizations'::regclass
        and tenancy.column_names(p_table, k.conkey) = '{organization_id}'
    )
$$;

create or replace function tenancy.key_steps(p_table regclass)
returns table (phase integer, statement text, undo text, note text)
language sql
stable
set search_path = ''
as $$
  with key as (
    select k.*, format('%s.%I', c.relnamespace::regnamespace, k.index_name) as index_path, x.reloptions, s.spcname,
      format('What %I kept unique over all tenants is unique within each: who upserts by it names organization_id, too.', k.index_name) as what
    from tenancy.keys_to_change(p_table) k
    join pg_class c on c.oid = p_table
    join pg_class x on x.oid = k.index_id
    left join pg_tablespace s on s.oid = x.reltablespace
    where k.new_definition is not null
  )
  select 50,
    format('alter table %1$s drop constraint %2$I, add constraint %2$I %3$s', p_table, constraint_name, new_definition),
    format('alter table %1$s drop constraint %2$I, add constraint %2$I %3$s', p_table, constraint_name, old_definition),
    what
  from key where constraint_name is not null
  union all
  select 51, format('alter index %s set (%s)', index_path, array_to_string(reloptions, ', ')), null, null
  from key where constraint_name is not null and reloptions is not null
  union all
  select 51, format('alter index %s set tablespace %I', index_path, spcname), null, null
  from key where constraint_name is not null and spcname is not null
  union all
  select 52, format('drop index %s', index_path), old_definition, what
  from key where constraint_name is null
  union all
  select 53, new_definition, format('drop index %s', index_path), null
  from key where constraint_name is null
$$;

-- Every foreign key has an index, or deleting what is referenced would read the whole table.
create or replace function tenancy.foreign_key_steps(p_tables regclass[])
returns table (subject regclass, phase integer, statement text, undo text, note text)
language sql
stable
set search_path = ''
as $$
  with reference as materialized (
    select * from tenancy.foreign_keys_to_change(p_tables) where obstacle is null
  ),
  bare as (
    select distinct on (from_table, new_columns) r.from_table, r.old_columns, r.new_columns
    from reference r
    where (r.from_table = any (p_tables) or r.new_definition is not null)
      and not exists (
        select
        from pg_index i
        left join tenancy.keys_to_change(r.from_table) k on k.index_id = i.indexrelid and r.from_table = any (p_tables)
        cross join lateral (
          select tenancy.column_names(r.from_table, (i.indkey::smallint[])[0:i.indnkeyatts - 1]) as columns
        ) as now
        cross join lateral (
          select case when k.index_id is null then now.columns else tenancy.organization_first(now.columns) end as columns
        ) as later
        where i.indrelid = r.from_table
          and i.indisvalid
          and i.indpred is null
          and later.columns[1:cardinality(r.new_columns)] @> r.new_columns
      )
  )
  select r.from_table, 40, format('alter table %s drop constraint %I', r.from_table, r.name),
    format('alter table %s add constraint %I %s', r.from_table, r.name, r.old_definition), null
  from reference r where r.new_definition is not null
  union all
  select r.from_table, 61, format('alter table %s add constraint %I %s', r.from_table, r.name, r.new_definition),
    format('alter table %s drop constraint %I', r.from_table, r.name), 'Rows of one organization refer to rows of the same one only.'
  from reference r where r.new_definition is not null
  union all
  select b.from_table, 70, format('create index %I on %s (%s)', n.name, b.from_table, array_to_string(b.new_columns, ', ')),
    format('drop index %s.%I', c.relnamespace::regnamespace, n.name), null
  from bare b
  join pg_class c on c.oid = b.from_table
  cross join lateral tenancy.free_name(
    b.from_table, concat_ws('_', c.relname, array_to_string(array_remove(b.new_columns, 'organization_id'), '_')), '_fk_idx'
  ) as n (name)
$$;

-- The owner's rights, and the way into the schema. Neither is taken back by an undo: other tables may need them.
create or replace function tenancy.ownership_steps(p_table regclass)
returns table (phase integer, statement text, undo text, note text)
language sql
stable
set search_path = ''
as $$
  select 20, format('grant usage, create on schema %s to goldleaves_owner', c.relnamespace::regnamespace), null, null
  from pg_class c
  where c.oid = p_table
    and not (has_schema_privilege('goldleaves_owner', c.relnamespace, 'usage') and has_schema_privilege('goldleaves_owner', c.relnamespace, 'create'))
  union all
  select 20, format('grant usage on schema %s to member, platform_admin', c.relnamespace::regnamespace), null, null
  from pg_class c
  where c.oid = p_table
    and not (has_schema_privilege('member', c.relnamespace, 'usage') and has_schema_privilege('platform_admin', c.relnamespace, 'usage'))
  union all
  select 21, format('alter table %s owner to goldleaves_owner', p_table), null,
    format('%s is its owner no longer.', pg_get_userbyid(c.relowner))
  from pg_class c
  where c.oid = p_table
    and c.relowner <> 'goldleaves_owner'::regrole
$$;

-- Whoever owns a table is bound by forced row security like everybody, and sees no row when a constraint is checked: it is not
-- forced as long as that takes. Nobody else is there to see, the tables are locked.
create or replace function tenancy.row_security_steps(p_tables regclass[], p_checked regclass[])
returns table (subject regclass, phase integer, statement text, undo text, note text)
language sql
stable
set search_path = ''
as $$
  select c.oid::regclass, s.phase, format('alter table %s %s', c.oid::regclass, s.action),
    format('alter table %s %s', c.oid::regclass, s.reverse), null
  from pg_class c
  cross join lateral (
    values
      (10, 'no force row level security', 'force row level security',
        c.relforcerowsecurity and c.oid = any (p_checked)),
      (80, 'enable row level security', 'disable row level security', c.oid = any (p_tables) and not c.relrowsecurity),
      (81, 'force row level security', 'no force row level security',
        case when c.relforcerowsecurity then c.oid = any (p_checked) else c.oid = any (p_tables) end)
  ) as s (phase, action, reverse, is_needed)
  where c.oid = any (p_tables || p_checked)
    and s.is_needed
$$;

-- All of them. belongs_in is the file in which the next environment finds the statement.
create or replace function tenancy.adoption_steps(p_tables regclass[], p_organization_id uuid)
returns table (phase integer, subject regclass, belongs_in text, statement text, undo text, note text)
language plpgsql
stable
set search_path = ''
as $$
begin
  return query
    with adopted as (
      select t::regclass as id from unnest(p_tables) as t
    ),
    change as materialized (
      select a.id as subject, s.* from adopted a, tenancy.organization_column_steps(a.id, p_organization_id) s
      union all
      select a.id, s.* from adopted a, tenancy.key_steps(a.id) s
      union all
      select * from tenancy.foreign_key_steps(p_tables)
    ),
    checked as (
      select array_agg(distinct t.id) as ids
      from (
        select c.subject from change c
        union all
        select f.to_table from tenancy.foreign_keys_to_change(p_tables) f where f.new_definition is not null
      ) as t (id)
    ),
    migration (subject, phase, statement, undo, note) as (
      select null::regclass, 5, 'lock table tenancy.organizations in share row exclusive mode', null, null
      from checked where ids is not null
      union all
      -- All locks first, in the order in which requests take them.
      select null, 6, format('lock table %s in access exclusive mode', (select string_agg(i::text, ', ' order by i::text) from unnest(ids) i)), null, null
      from checked where ids is not null
      union all
      select * from change
      union all
      select a.id, s.* from adopted a, tenancy.ownership_steps(a.id) s
      union all
      select s.* from checked, tenancy.row_security_steps(p_tables, coalesce(checked.ids, '{}')) s
    )
    select m.phase, m.subject, 'migrations/', m.statement, m.undo, m.note from migration m
    union all
    select s.phase, a.id, format('policies/%s.sql', tenancy.file_name(a.id)), s.statement, null, s.note
    from adopted a, tenancy.protection_steps(a.id) s
    union all
    select s.phase, a.id, format('sql/adopted/%s.sql', tenancy.file_name(a.id)), s.statement, null, s.note
    from adopted a, tenancy.trigger_steps(a.id) s
    order by 1, 2, 4;
end;
$$;
