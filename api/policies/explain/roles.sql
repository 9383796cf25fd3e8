-- The roles that have to do with the table %(table)s: those that rights or policies of it name, its owner, those that have the rights
-- of one of these or can become one, and those that stand above everything.
with named as (
  select relowner as id from pg_class where oid = %(table)s
  union
  select unnest(polroles) from pg_policy where polrelid = %(table)s
  union
  select entry.grantee
  from (
    select relacl as acl from pg_class where oid = %(table)s
    union all
    select attacl from pg_attribute where attrelid = %(table)s and not attisdropped
  ) as a, aclexplode(a.acl) as entry
)
select
  r.rolname,
  r.rolsuper,
  r.rolbypassrls,
  r.oid in (select id from named),
  has_schema_privilege(r.oid, c.relnamespace, 'usage'),
  pg_has_role(r.oid, c.relowner, 'usage'),
  pg_has_role(r.oid, 'pg_read_all_data', 'usage'),
  pg_has_role(r.oid, 'pg_write_all_data', 'usage'),
  array(
    select n.rolname from named join pg_roles n on n.oid = named.id
    where n.oid <> r.oid and not r.rolsuper and pg_has_role(r.oid, n.oid, 'usage')
    order by 1
  ) as inherits,
  array(
    select n.rolname from named join pg_roles n on n.oid = named.id
    where n.oid <> r.oid and not r.rolsuper and pg_has_role(r.oid, n.oid, %(become)s) and not pg_has_role(r.oid, n.oid, 'usage')
    order by 1
  ) as becomes,
  array(
    select distinct f.oid::regprocedure::text
    from pg_policy p
    join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_proc'::regclass
    join pg_proc f on f.oid = d.refobjid
    where p.polrelid = c.oid and not has_function_privilege(r.oid, f.oid, 'execute')
    order by 1
  ) as not_executable
from pg_class c
cross join pg_roles r
where c.oid = %(table)s
  and (r.rolname !~ '^pg_' or r.oid in (select id from named))
  and (
    r.rolsuper
    or r.rolbypassrls
    or pg_has_role(r.oid, 'pg_read_all_data', 'usage')
    or pg_has_role(r.oid, 'pg_write_all_data', 'usage')
    or exists (
      select from named
      where named.id = r.oid or (named.id <> 0 and (pg_has_role(r.oid, named.id, 'usage') or pg_has_role(r.oid, named.id, %(become)s)))
    )
  )
order by 1
