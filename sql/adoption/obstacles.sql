-- What is in the way of adopting tables, and what to do about each. First what the catalog says; then, of tables that can be read,
-- what their rows say.

create or replace function tenancy.table_obstacles(p_table regclass)
returns table (problem text, remedy text)
language sql
stable
set search_path = ''
as $$
  select o.problem, o.remedy
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  cross join lateral (
    values
      (
        c.relkind <> 'r' or c.relispartition or c.relpersistence = 't' or c.reloftype <> 0,
        format('is a %s, and not an ordinary table', case
          when c.relispartition then 'partition'
          when c.relpersistence = 't' then 'temporary table'
          when c.reloftype <> 0 then 'typed table'
          else case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table'
            when 'p' then 'partitioned table' when 'S' then 'sequence' when 'i' then 'index' else 'relation of another kind' end
        end),
        'adopt the ordinary tables that hold the rows'
      ),
      (
        tenancy.is_own_schema(c.relnamespace)
          or (n.nspname = 'app' and c.relname in ('clients', 'cases', 'documents')),
        'is one of those that Goldleaves or Postgres itself has made',
        'name a table of your own'
      ),
      (
        c.oid::regclass::text <> format('%s.%s', n.nspname, c.relname),
        'has a name that needs quotes, and files are named after it',
        'rename it, or its schema, to lowercase letters, digits and underscores'
      ),
      (
        octet_length(c.relname) > 56,
        format('has a name of %s bytes, too long to name policies after it', octet_length(c.relname)),
        'rename it to at most 56'
      ),
      (
        not pg_has_role(c.relowner, 'usage'),
        format('belongs to %s, and %s may not act as that role', pg_get_userbyid(c.relowner), current_user),
        format('as a superuser: alter table %s owner to goldleaves_owner', c.oid::regclass)
      ),
      (
        not pg_has_role('goldleaves_owner', 'usage'),
        format('is to belong to goldleaves_owner, and %s may not act as that role', current_user),
        'adopt it as goldleaves_migrator or as a superuser'
      ),
      (
        not pg_has_role(n.nspowner, 'usage') and not (
          has_schema_privilege('goldleaves_owner', n.oid, 'usage') and has_schema_privilege('goldleaves_owner', n.oid, 'create')
          and has_schema_privilege('member', n.oid, 'usage') and has_schema_privilege('platform_admin', n.oid, 'usage')
        ),
        format('lies in schema %s of %s, where goldleaves_owner may not create, or member not enter', n.nspname, pg_get_userbyid(n.nspowner)),
        format(
          'as its owner: grant usage, create on schema %1$s to goldleaves_owner; grant usage on schema %1$s to member, platform_admin',
          c.relnamespace::regnamespace
        )
      ),
      (
        c.relkind = 'r' and not exists (select from pg_constraint where conrelid = c.oid and contype = 'p'),
        'has no primary key',
        format('alter table %s add primary key (…)', c.oid::regclass)
      ),
      (
        exists (select from pg_inherits where c.oid in (inhrelid, inhparent)) and not c.relispartition and c.relkind = 'r',
        'inherits from a table, or another one from it: keys and policies do not pass along',
        format('alter table … no inherit %s', c.oid::regclass)
      ),
      (
        exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e'),
        'belongs to an extension',
        'leave it alone'
      ),
      (
        c.relreplident = 'i',
        'has an index for replica identity, which would be made anew',
        format('alter table %s replica identity default, and set it again afterwards', c.oid::regclass)
      )
  ) as o (applies, problem, remedy)
  where c.oid = p_table
    and o.applies
$$;

create or replace function tenancy.dependent_obstacles(p_table regclass)
returns table (problem text, remedy text)
language sql
stable
set search_path = ''
as $$
  select format('has policy %I, which is not one of ours', name), format('drop policy %I on %s; afterwards, write it into policies/', name, p_table)
  from tenancy.foreign_policies(p_table)
  where not tenancy.has_policy_file(p_table)
  union all
  select format('has rule %I, which rewrites what policies are about', rulename), format('drop rule %I on %s', rulename, p_table)
  from pg_rewrite where ev_class = p_table and rulename <> '_RETURN'
  union all
  select distinct format('is read by materialized view %s, a copy of rows of every tenant', v.oid::regclass), format('drop materialized view %s', v.oid::regclass)
  from pg_depend d join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid join pg_class v on v.oid = r.ev_class
  where d.refclassid = 'pg_class'::regclass and d.refobjid = p_table and v.oid <> p_table and v.relkind = 'm'
  union all
  select distinct format('is read by view %s with the rights of its owner, not of who asks', v.oid::regclass),
    format('alter view %s set (security_invoker = true), or drop it', v.oid::regclass)
  from pg_depend d join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid join pg_class v on v.oid = r.ev_class
  where d.refclassid = 'pg_class'::regclass and d.refobjid = p_table and v.oid <> p_table and v.relkind = 'v'
    and not coalesce(v.reloptions, '{}') && '{security_invoker=true,security_invoker=on}'
  union all
  select distinct format('has a key that view %s groups by', r.ev_class::regclass), format('drop view %s, and make it again afterwards', r.ev_class::regclass)
  from tenancy.keys_to_change(p_table) k
  join pg_constraint c on c.conindid = k.index_id and c.conrelid = p_table
  join pg_depend d on d.refclassid = 'pg_constraint'::regclass and d.refobjid = c.oid and d.classid = 'pg_rewrite'::regclass
  join pg_rewrite r on r.oid = d.objid
  union all
  select format('is in publication %I, whose subscribers have other keys', p.pubname),
    format('alter publication %I drop table %s, and add it again afterwards', p.pubname, p_table)
  from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
  where r.prrelid = p_table
$$;

create or replace function tenancy.key_obstacles(p_tables regclass[])
returns table (subject regclass, problem text, remedy text)
language sql
stable
set search_path = ''
as $$
  select a.attrelid::regclass, format('has organization_id, but %s', w.what), w.remedy
  from pg_attribute a
  cross join lateral (
    values
      (a.atttypid <> 'uuid'::regtype, format('as %s and not as uuid', format_type(a.atttypid, a.atttypmod)), 'rename the column, or make it uuid'),
      (a.attgenerated <> '', 'as a generated column', 'rename the column, or make it an ordinary one')
  ) as w (applies, what, remedy)
  where a.attrelid = any (p_tables) and a.attname = 'organization_id' and not a.attisdropped and w.applies
  union all
  select t.id, format('has unique index %s, which cannot be made again with organization_id in front', k.index_name),
    'drop it, adopt the table, and make it again with organization_id in front'
  from (select unnest(p_tables) as id) t, tenancy.keys_to_change(t.id) k
  where k.new_definition is null
  union all
  select c.conrelid::regclass, format('has exclusion constraint %I without organization_id: it would tell one tenant about another', c.conname),
    'drop it, adopt the table, and make it again with organization_id with = (extension btree_gist)'
  from pg_constraint c
  where c.conrelid = any (p_tables) and c.contype = 'x'
    and not 'organization_id' = any (tenancy.column_names(c.conrelid, c.conkey))
  union all
  select case when f.from_table = any (p_tables) then f.from_table else f.to_table end,
    format('%s foreign key %I of %s, which %s', case when f.from_table = any (p_tables) then 'has' else 'is named by' end,
      f.name, f.from_table, f.obstacle),
    f.remedy
  from tenancy.foreign_keys_to_change(p_tables) f
  where f.obstacle is not null
$$;

-- What the rows say. Their tables are not behind row security: adopt_tables has seen to that.
create or replace function tenancy.row_obstacles(p_tables regclass[], p_organization_id uuid)
returns table (subject regclass, problem text, remedy text)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_table regclass;
  v_reference record;
  v_count bigint;
  v_total bigint;
  v_sample uuid;
  v_from text;
  v_to text;
begin
  foreach v_table in array p_tables loop
    if not tenancy.has_organization_id(v_table) then
      continue when p_organization_id is not null
        or exists (select from pg_attribute a where a.attrelid = v_table and a.attname = 'organization_id' and not a.attisdropped);
      execute format('select count(*) from %s', v_table) into v_count;
      continue when v_count = 0;
      return query select v_table, format('has %s row%s and no organization_id', to_char(v_count, 'FM999,999,999,999'), case when v_count > 1 then 's' end),
        'say whose they are (p_organization_id, or --organization), or add the column and fill it first';
    else
      execute format('select count(*), count(*) filter (where organization_id is null) from %s', v_table) into v_total, v_count;
      if v_count > 0 then
        return query select v_table, format('has %s of %s rows without organization_id', v_count, v_total),
          format('update %s set organization_id = … where organization_id is null', v_table);
      end if;
      execute format(
        'select count(*), (array_agg(t.organization_id))[1] from %s t
         where t.organization_id is not null and not exists (select from tenancy.organizations o where o.id = t.organization_id)',
        v_table
      ) into v_count, v_sample;
      if v_count > 0 then
        return query select v_table, format('has %s of %s rows of organizations that do not exist, such as %s', v_count, v_total, v_sample),
          'make these organizations first, or give the rows to one that exists';
      end if;
    end if;
  end loop;

  for v_reference in select * from tenancy.foreign_keys_to_change(p_tables) f where f.new_definition is not null loop
    v_from := case when tenancy.has_organization_id(v_reference.from_table) then 'f.organization_id' else format('%L::uuid', p_organization_id) end;
    v_to := case when tenancy.has_organization_id(v_reference.to_table) then 't.organization_id' else format('%L::uuid', p_organization_id) end;
    continue when v_from = v_to;
    execute format(
      'select count(*) from %s f join %s t on (%s) = (%s) where %s <> %s',
      v_reference.from_table, v_reference.to_table,
      (select string_agg('f.' || c, ', ') from unnest(v_reference.old_columns) c),
      (select string_agg('t.' || c, ', ') from unnest(v_reference.old_referenced) c),
      v_from, v_to
    ) into v_count;
    if v_count > 0 then
      return query select v_reference.from_table,
        format(
          'has %s row%s whose %s (%s) refers to a row of another organization in %s', v_count, case when v_count > 1 then 's' end,
          v_reference.name, array_to_string(v_reference.old_columns, ', '), v_reference.to_table
        ),
        'give both rows to one organization, or set the reference to null';
    end if;
  end loop;
end;
$$;
