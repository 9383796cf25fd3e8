-- Who may do what with the rows of an adopted table: the policies of policies/app.cases.sql, grants on its columns, and the triggers of
-- sql/tenancy/rows_sent_back.sql. What is said here is the beginning. Once policies/ has a file for the table, that file speaks, and
-- nothing here touches it.

-- <schema>.<table>, after which the files in policies/ and sql/adopted/ are named.
create or replace function tenancy.file_name(p_table regclass)
returns text
language sql
stable
set search_path = ''
as $$ select format('%s.%s', c.relnamespace::regnamespace, c.relname) from pg_class c where c.oid = p_table $$;

create or replace function tenancy.policies_to_have(p_table regclass)
returns table (phase integer, name text, command "char", role text, using_expression text, check_expression text)
language sql
stable
set search_path = ''
as $$
  select p.phase, c.relname || '_' || p.name, p.command::"char", p.role,
    case
      when p.reads is not null then format('organization_id = tenancy.current_org_for(%s)', p.reads)
      when p.name = 'staff' then 'true'
    end,
    case
      when p.name = 'insert' then format('organization_id = tenancy.current_org_for(%s)', p.writes)
      when p.name = 'update' then 'organization_id = tenancy.current_org()'
    end
  from pg_class c
  cross join (
    values
      (90, 'read', 'r', 'member', $roles$'owner', 'admin', 'member', 'viewer', 'data:read'$roles$, null),
      (91, 'insert', 'a', 'member', null, $roles$'owner', 'admin', 'member', 'data:write'$roles$),
      (92, 'update', 'w', 'member', $roles$'owner', 'admin', 'member', 'data:write'$roles$, null),
      (93, 'delete', 'd', 'member', $roles$'owner', 'admin'$roles$, null),
      (94, 'staff', 'r', 'platform_admin', null, null)
  ) as p (phase, name, command, role, reads, writes)
  where c.oid = p_table
$$;

-- The expression without what Postgres adds when it prints it. None of ours has an `or`, so that parentheses tell nothing.
create or replace function tenancy.bare_expression(p_expression text)
returns text
language sql
immutable
set search_path = ''
as $$ select lower(regexp_replace(p_expression, 'VARIADIC ARRAY|::text|[][()\s]', '', 'g')) $$;

-- The table's policies that are not, word for word, those that it is to have.
create or replace function tenancy.foreign_policies(p_table regclass)
returns table (name text)
language sql
stable
set search_path = ''
as $$
  select p.polname::text
  from pg_policy p
  left join tenancy.policies_to_have(p_table) h on h.name = p.polname
  where p.polrelid = p_table
    and (h.name, true, h.command, array[h.role], tenancy.bare_expression(h.using_expression), tenancy.bare_expression(h.check_expression))
      is distinct from (
        p.polname::text, p.polpermissive, p.polcmd, (select array_agg(pg_get_userbyid(r)::text) from unnest(p.polroles) r),
        tenancy.bare_expression(pg_get_expr(p.polqual, p.polrelid)), tenancy.bare_expression(pg_get_expr(p.polwithcheck, p.polrelid))
      )
$$;

create or replace function tenancy.policy_statements(p_table regclass)
returns table (phase integer, name text, statement text)
language sql
stable
set search_path = ''
as $$
  select phase, name,
    format('create policy %I on %s for %s to %s', name, p_table,
      case command when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' else 'delete' end, role)
    || case when using_expression = 'true' then ' using (true)' else coalesce(E'\n  using (' || using_expression || ')', '') end
    || coalesce(E'\n  with check (' || check_expression || ')', '')
  from tenancy.policies_to_have(p_table)
$$;

-- Whole rows can be sent back, so members write all columns, but not those that nobody can: generated ones, and identities that
-- are generated always. organization_id may not be there yet.
create or replace function tenancy.grant_statements(p_table regclass)
returns table (phase integer, statement text, note text)
language sql
stable
set search_path = ''
as $$
  with written as (
    select string_agg(n.name, ', ' order by n.position) as columns
    from (
      select 0 as position, 'organization_id' as name
      union all
      select attnum, quote_ident(attname) from pg_attribute
      where attrelid = p_table and attnum > 0 and not attisdropped and attgenerated = '' and attidentity <> 'a'
        and attname <> 'organization_id'
    ) as n
  )
  select 96, format('grant select, delete on %s to member', p_table), null
  union all
  select 97, format(E'grant insert (%1$s),\n  update (%1$s) on %2$s to member', w.columns, p_table),
    (
      select format('Numbers from a sequence (%s) tell every tenant how much the others write. A uuid does not: default ops.new_id().',
        string_agg(quote_ident(n.attname), ', ' order by n.attnum))
      from pg_attribute n
      where n.attrelid = p_table and pg_get_serial_sequence(p_table::text, n.attname) is not null and not n.attisdropped and n.attnum > 0
      having count(*) > 0
    )
  from written w
  union all
  select 98, format('grant select on %s to platform_admin', p_table), null
  union all
  select 99, format('grant usage on sequence %s to member', s.id), null
  from (
    select distinct d.refobjid::regclass as id
    from pg_attrdef a
    join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = a.oid and d.refclassid = 'pg_class'::regclass
    join pg_class c on c.oid = d.refobjid and c.relkind = 'S'
    where a.adrelid = p_table
  ) as s
$$;

-- (grantee, privilege, column or null), of others than the owner.
create or replace function tenancy.grants_on(p_table regclass)
returns table (grantee text, privilege text, column_name text)
language sql
stable
set search_path = ''
as $$
  select case when g.grantee = 0 then 'public' else pg_get_userbyid(g.grantee) end, lower(g.privilege_type), a.column_name
  from pg_class c
  cross join lateral (
    select c.relacl as acl, null::text as column_name
    union all
    select attacl, attname from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped
  ) as a
  cross join lateral aclexplode(a.acl) as g
  where c.oid = p_table
    and g.grantee <> c.relowner
    and g.grantee <> 'goldleaves_owner'::regrole
$$;

create or replace function tenancy.has_expected_grants(p_table regclass)
returns boolean
language sql
stable
set search_path = ''
as $$
  with expected (grantee, privilege, column_name) as (
    values ('member', 'select', null), ('member', 'delete', null), ('platform_admin', 'select', null)
    union all
    select 'member', p.privilege, n.attname::text
    from pg_attribute n, (values ('insert'), ('update')) as p (privilege)
    where n.attrelid = p_table and n.attnum > 0 and not n.attisdropped and n.attgenerated = '' and n.attidentity <> 'a'
  )
  select tenancy.has_organization_id(p_table) and not exists (
    (select * from expected except select * from tenancy.grants_on(p_table))
    union all
    (select * from tenancy.grants_on(p_table) except select * from expected)
  )
$$;

create or replace function tenancy.has_policy_file(p_table regclass)
returns boolean
language sql
stable
set search_path = ''
as $$
  select coalesce(
    (select r.fingerprint <> '' from ops.policy_releases r where r.table_name = tenancy.file_name(p_table) order by r.id desc limit 1), false
  )
$$;

create or replace function tenancy.protection_steps(p_table regclass)
returns table (phase integer, statement text, note text)
language sql
stable
set search_path = ''
as $$
  select s.*
  from (
    select p.phase, p.statement, null::text as note
    from tenancy.policy_statements(p_table) p
    where not exists (select from pg_policy where polrelid = p_table and polname = p.name)
    union all
    select 95, format('revoke all on %s from %s cascade', p_table, quote_ident(g.grantee)),
      case when g.grantee not in ('member', 'platform_admin') then format('%s could %s. Row security would hide every row from it: what it needs is yours to grant, with a policy, in the file.', g.grantee, g.privileges) end
    from (
      select grantee, string_agg(distinct privilege, ', ' order by privilege) as privileges from tenancy.grants_on(p_table) group by 1
    ) as g
    where not tenancy.has_expected_grants(p_table)
    union all
    select g.* from tenancy.grant_statements(p_table) g where not tenancy.has_expected_grants(p_table)
  ) as s
  where not tenancy.has_policy_file(p_table)
$$;

-- keep_stamps needs both columns. A created_by that is neither text nor uuid holds something else than our users.
create or replace function tenancy.trigger_statements(p_table regclass)
returns table (phase integer, function_name text, statement text, note text)
language sql
stable
set search_path = ''
as $$
  with columns as (
    select
      bool_or(attname = 'id') as id,
      bool_or(attname = 'created_by' and atttypid in ('uuid'::regtype, 'text'::regtype))
        and bool_or(attname = 'created_at' and atttypid in ('timestamptz'::regtype, 'timestamp'::regtype)) as stamps
    from pg_attribute
    where attrelid = p_table and attnum > 0 and not attisdropped
  )
  select 100, 'tenancy.refuse_new_id()', format(
    E'create or replace trigger refuse_new_id before update on %s\n  for each row when (old.id is distinct from new.id) execute function tenancy.refuse_new_id()',
    p_table
  ), null
  from columns where id
  union all
  select 101, 'tenancy.keep_stamps()', format(
    E'create or replace trigger keep_stamps before insert or update on %s\n  for each row when (current_user = ''member'') execute function tenancy.keep_stamps()',
    p_table
  ), 'created_by and created_at of what members write are ours to say: the user of this organization, and now.'
  from columns where stamps
  union all
  -- All that a row says is personal data: what tenants keep in tables of their own is not ours to know.
  select 102, 'audit.record_change()',
    format('select audit.watch(%L, %L, %L, p_personal => %L)', p_table, replace(tenancy.file_name(p_table), '.', '_'), key.columns, '{*}'), null
  from (
    select array_agg(a.attname order by k.position) as columns
    from pg_constraint c
    cross join unnest(c.conkey) with ordinality as k (number, position)
    join pg_attribute a on a.attrelid = p_table and a.attnum = k.number
    where c.conrelid = p_table and c.contype = 'p' and (a.attname <> 'organization_id' or cardinality(c.conkey) = 1)
  ) as key
$$;

create or replace function tenancy.trigger_steps(p_table regclass)
returns table (phase integer, statement text, note text)
language sql
stable
set search_path = ''
as $$
  select s.phase, s.statement, s.note
  from tenancy.trigger_statements(p_table) s
  where not exists (
    select from pg_trigger t where t.tgrelid = p_table and t.tgfoid::regprocedure::text = s.function_name and t.tgenabled <> 'D'
  )
$$;
