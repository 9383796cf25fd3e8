-- What has to change about the keys of tables that become tenants' tables: each key starts with organization_id, or uniqueness
-- and references would tell one tenant about another. Read from the catalog and nothing else, so that it can be shown before
-- anything is done. Definitions are those that Postgres itself prints, with organization_id put in front of the columns.

-- Schemas of ours whose tables are nobody's to adopt. In app are the tenants' own.
create or replace function tenancy.is_own_schema(p_schema regnamespace)
returns boolean
language sql
stable
set search_path = ''
as $$
  select p_schema::text = any ('{tenancy,metering,billing,stripe,notifications,audit,ops,api,yoyo}')
    or p_schema::text ~ '^(pg_|information_schema$)'
$$;

create or replace function tenancy.has_organization_id(p_table regclass)
returns boolean
language sql
stable
set search_path = ''
as $$
  select exists (
    select from pg_attribute
    where attrelid = p_table and attname = 'organization_id' and atttypid = 'uuid'::regtype and not attisdropped
  )
$$;

-- Names of columns, quoted, in the order in which they are given. Expressions of an index, which have number 0, are left out.
create or replace function tenancy.column_names(p_table regclass, p_numbers smallint[])
returns text[]
language sql
stable
set search_path = ''
as $$
  select coalesce(array_agg(quote_ident(a.attname) order by n.position), '{}')
  from unnest(p_numbers) with ordinality as n (number, position)
  join pg_attribute a on a.attrelid = p_table and a.attnum = n.number
$$;

create or replace function tenancy.organization_first(p_columns text[])
returns text[]
language sql
immutable
set search_path = ''
as $$ select array_prepend('organization_id', array_remove(p_columns, 'organization_id')) $$;

-- Primary keys, unique constraints and unique indexes that do not start with organization_id. new_definition is null where we
-- cannot make it.
create or replace function tenancy.keys_to_change(p_table regclass)
returns table (index_id oid, index_name text, constraint_name text, columns text[], old_definition text, new_definition text)
language sql
stable
set search_path = ''
as $$
  with key as (
    select i.indexrelid, x.relname, m.amname, c.conname, (i.indkey::smallint[])[0:i.indnkeyatts - 1] as numbers,
      tenancy.column_names(i.indrelid, (i.indkey::smallint[])[0:i.indnkeyatts - 1]) as columns,
      coalesce(pg_get_constraintdef(c.oid), pg_get_indexdef(i.indexrelid)) as definition
    from pg_index i
    join pg_class x on x.oid = i.indexrelid
    join pg_am m on m.oid = x.relam
    left join pg_constraint c on c.conindid = i.indexrelid and c.conrelid = i.indrelid and c.contype in ('p', 'u')
    where i.indrelid = p_table
      and i.indisunique
  ),
  parsed as (
    select key.*,
      format('(%s)', array_to_string(columns, ', ')) as list,
      format('CREATE UNIQUE INDEX %I ON %s USING %I (', relname, p_table, amname) as head
    from key
    where numbers[1] = 0 or columns[1] <> 'organization_id'
  )
  select indexrelid, relname::text, conname::text, columns, definition,
    case
      when conname is not null and position(list in definition) > 0 then overlay(
        definition placing format('(%s)', array_to_string(tenancy.organization_first(columns), ', '))
        from position(list in definition) for length(list)
      )
      when conname is null and starts_with(definition, head) and not 'organization_id' = any (columns) then
        head || 'organization_id, ' || substr(definition, length(head) + 1)
    end
  from parsed
$$;

-- Foreign keys of and to the tables that are to be adopted, together. Those between tenants' tables get organization_id in front;
-- references to tables that all tenants share stay (new_definition is null).
create or replace function tenancy.foreign_keys_to_change(p_tables regclass[])
returns table (
  from_table regclass, name text, to_table regclass, old_columns text[], old_referenced text[], new_columns text[], new_referenced text[],
  old_definition text, new_definition text, obstacle text, remedy text
)
language sql
stable
set search_path = ''
as $$
  with reference as (
    select c.*, c.conrelid::regclass as source, c.confrelid::regclass as target,
      tenancy.column_names(c.conrelid, c.conkey) as columns, tenancy.column_names(c.confrelid, c.confkey) as referenced,
      pg_get_constraintdef(c.oid) as definition
    from pg_constraint c
    where c.contype = 'f'
      and c.conparentid = 0
      and (c.conrelid = any (p_tables) or c.confrelid = any (p_tables))
  ),
  parsed as (
    select r.*,
      format('FOREIGN KEY (%s) REFERENCES %s(%s)', array_to_string(columns, ', '), target, array_to_string(referenced, ', ')) as head,
      tenancy.organization_first(columns) as columns_after, tenancy.organization_first(referenced) as referenced_after,
      array_remove(columns, 'organization_id') as others,
      source = any (p_tables) or tenancy.has_organization_id(source) as from_tenant,
      target = any (p_tables) or (
        tenancy.has_organization_id(target)
        and not tenancy.is_own_schema((select relnamespace from pg_class where oid = target))
      ) as to_tenant,
      columns[1] = 'organization_id' and referenced[1] = 'organization_id' as is_composite,
      target = any (p_tables) and conindid in (select k.index_id from tenancy.keys_to_change(target) k) as key_changes
    from reference r
  ),
  judged as (
    select p.*, to_tenant and (key_changes or not is_composite) as changes,
      case
        when not to_tenant or (is_composite and not key_changes) then null
        when not from_tenant then 'points here from a table without organization_id'
        when array_position(columns, 'organization_id') is distinct from array_position(referenced, 'organization_id') then
          'pairs organization_id with another column'
        when not starts_with(definition, head) then 'cannot be made again with organization_id'
        when confmatchtype = 'f' and cardinality(others) > 1 then
          'is MATCH FULL over several columns, which organization_id, never null, would break'
        when confupdtype in ('n', 'd') then 'sets columns on update, which would include organization_id'
        when not source = any (p_tables) and not pg_has_role((select relowner from pg_class where oid = source), 'usage') then
          'belongs to a table that you may not change'
        when not target = any (p_tables) and not exists (
          select from pg_index i
          where i.indrelid = target and i.indisunique and i.indisvalid and i.indpred is null
            and tenancy.column_names(target, (i.indkey::smallint[])[0:i.indnkeyatts - 1]) @> referenced_after
            and tenancy.column_names(target, (i.indkey::smallint[])[0:i.indnkeyatts - 1]) <@ referenced_after
        ) then format('points at a table with organization_id, but no key (%s)', array_to_string(referenced_after, ', '))
      end as obstacle
    from parsed p
  )
  select source, conname::text, target, columns, referenced,
    case when changes then columns_after else columns end,
    case when changes then referenced_after else referenced end,
    definition,
    case when changes and obstacle is null then
      format(
        'FOREIGN KEY (%s) REFERENCES %s(%s)', array_to_string(columns_after, ', '), target, array_to_string(referenced_after, ', ')
      ) || regexp_replace(
        replace(substr(definition, length(head) + 1), ' MATCH FULL', ''),
        ' ON DELETE SET (NULL|DEFAULT)(?! \()', format(' ON DELETE SET \1 (%s)', array_to_string(others, ', '))
      )
    end,
    obstacle,
    case
      when obstacle is null then null
      when not from_tenant or not target = any (p_tables) then format(
        'adopt both in one call: select * from tenancy.adopt_tables(%L), or drop the constraint',
        (select array_agg(t.name order by t.name) from (select unnest(p_tables)::text as name union select source::text union select target::text) as t)
      )
      else 'drop it, adopt the table, and make it again with organization_id in front'
    end
  from judged
  order by source::text, conname
$$;
