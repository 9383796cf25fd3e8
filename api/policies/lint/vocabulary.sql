-- The words that rules are written in. Each rule is the query that follows this WITH, so it reads from these as from tables.

-- Schemas that hold our objects: those of the product by name, since an owner may have been changed by hand, and an adopter's by owner.
with ours as materialized (
  select n.oid, quote_ident(n.nspname) as name, n.nspowner as owner
  from pg_namespace n
  where n.nspowner = to_regrole('goldleaves_owner')
    or n.nspname in ('tenancy', 'app', 'metering', 'billing', 'stripe', 'notifications', 'audit', 'ops', 'api')
),
-- Whom a request acts as: what `authenticator` may become, and the logins that serve. 0 is PUBLIC.
request_roles as materialized (
  select 0::oid as oid, 'public'::text as name
  union all
  select r.oid, quote_ident(r.rolname)
  from pg_roles r
  left join pg_roles authenticator on authenticator.rolname = 'authenticator'
  where r.rolname not in ('goldleaves_owner', 'goldleaves_kernel', 'goldleaves_migrator')
    and (
      r.rolname in ('anon', 'member', 'service', 'platform_admin', 'authenticator', 'sidecar', 'monitor')
      or (not r.rolsuper and not authenticator.rolsuper and pg_has_role(authenticator.oid, r.oid, 'member'))
    )
),
-- Also what lies in other schemas, when it was adopted or a request reaches it.
relations as materialized (
  select
    c.oid, c.oid::regclass::text as name, c.relkind as kind, c.relnamespace as schema, c.relowner as owner, c.relacl as acl,
    c.relrowsecurity as has_row_security, c.relforcerowsecurity as is_forced, c.relispartition as is_partition,
    c.reloptions as options
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'v', 'm', 'f')
    and n.nspname !~ '^(pg_|information_schema$)'
    and (
      c.relnamespace in (select oid from ours)
      or c.relowner = to_regrole('goldleaves_owner')
      or exists (select from aclexplode(c.relacl) a where a.grantee in (select oid from request_roles) and a.grantee <> c.relowner)
      or exists (
        select from pg_attribute t, aclexplode(t.attacl) a
        where t.attrelid = c.oid and a.grantee in (select oid from request_roles)
      )
    )
),
-- Tables with rows of tenants, with the column that says whose a row is.
tenant_tables as materialized (
  select r.*, a.attnum as tenant_number, quote_ident(a.attname) as tenant_column
  from relations r
  join pg_attribute a
    on a.attrelid = r.oid and a.attname = case r.oid when to_regclass('tenancy.organizations') then 'id' else 'organization_id' end
  where r.kind in ('r', 'p') and not a.attisdropped
),
-- Privileges that are stored, of others than the owner. column_name is null where it is of the whole.
grants as materialized (
  select g.relation, g.column_name, g.grantee, g.privilege, g.is_grantable,
    case g.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end as grantee_name
  from (
    select r.oid as relation, null::text as column_name, a.grantee, a.privilege_type as privilege, a.is_grantable
    from relations r, aclexplode(r.acl) a
    where a.grantee <> r.owner
    union all
    select r.oid, quote_ident(t.attname), a.grantee, a.privilege_type, a.is_grantable
    from relations r
    join pg_attribute t on t.attrelid = r.oid, aclexplode(t.attacl) a
    where a.grantee <> r.owner
  ) as g
),
-- Whether each expression of a policy binds the row to the caller's organization; null where there is no such expression.
predicates as materialized (
  select * from jsonb_to_recordset(:predicates) as p (policy oid, using_binds boolean, check_binds boolean)
),
policies as materialized (
  select
    p.oid, r.oid as relation, r.name as table_name,
    quote_ident(p.polname) as name, format('%I on %s', p.polname, r.name) as address,
    p.polcmd as command, p.polpermissive as is_permissive, p.polroles as roles,
    (select string_agg(case o when 0 then 'public' else quote_ident(pg_get_userbyid(o)) end, ', ') from unnest(p.polroles) o) as role_names,
    pg_get_expr(p.polqual, p.polrelid) as using_text, pg_get_expr(p.polwithcheck, p.polrelid) as check_text,
    p.polqual::text as using_tree, p.polwithcheck::text as check_tree,
    predicates.using_binds, predicates.check_binds
  from pg_policy p
  join relations r on r.oid = p.polrelid
  join predicates on predicates.policy = p.oid
),
functions as materialized (
  select
    p.oid, p.oid::regprocedure::text as name, p.pronamespace as schema, p.proowner as owner, p.prosecdef as is_definer,
    p.proconfig as config, p.provolatile as volatility, p.proisstrict as is_strict, p.proretset as is_set, p.prokind as kind,
    language.lanname as language, p.prosrc as body, coalesce(p.proacl, acldefault('f', p.proowner)) as acl
  from pg_proc p
  join pg_language language on language.oid = p.prolang
  where p.pronamespace in (select oid from ours)
    or p.proowner in (to_regrole('goldleaves_owner')::oid, to_regrole('goldleaves_kernel')::oid)
    -- Also what lies in other schemas, when it has rights of its own, and a request reaches it.
    or (
      p.prosecdef
      and p.pronamespace not in (select oid from pg_namespace where nspname ~ '^(pg_|information_schema$)')
      and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
      and exists (
        select from request_roles r
        where r.oid <> 0 and r.oid <> p.proowner
          and has_function_privilege(r.oid, p.oid, 'execute') and has_schema_privilege(r.oid, p.pronamespace, 'usage')
      )
    )
)
