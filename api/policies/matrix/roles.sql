-- Roles that hold a grant on one of the tables or are named by one of its policies, and those asked for. Owners hold what they own.
select distinct r.rolname::text, r.rolsuper
from pg_catalog.pg_roles r
where r.rolname = any (%(named)s)
  or exists (
    select
    from unnest(%(tables)s::text[]) as t (name)
    join pg_catalog.pg_class c on c.oid = t.name::regclass
    where exists (select from pg_catalog.aclexplode(c.relacl) g where g.grantee = r.oid and g.grantee <> c.relowner)
      or exists (
        select from pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) g
        where a.attrelid = c.oid and g.grantee = r.oid and g.grantee <> c.relowner
      )
      or exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid and r.oid = any (p.polroles))
      or c.relowner = r.oid
  )
order by 1
