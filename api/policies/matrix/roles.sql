-- Roles that hold a grant on one of the tables or that one of its policies names, also by inheriting from another role; and those
-- asked for. Whoever acts as goldleaves_owner is left out: no policy keeps them from changing it.
with holders as materialized (
  select distinct holder.id
  from unnest(%(tables)s::text[]) as t (name)
  join pg_catalog.pg_class c on c.oid = t.name::regclass
  cross join lateral (
    select g.grantee from pg_catalog.aclexplode(c.relacl) g
    union all
    select g.grantee from pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) g where a.attrelid = c.oid
    union all
    select unnest(p.polroles) from pg_catalog.pg_policy p where p.polrelid = c.oid
    union all
    select c.relowner
  ) as holder (id)
  where holder.id <> 0
)
select r.rolname::text, r.rolsuper
from pg_catalog.pg_roles r
where r.rolname = any (%(named)s)
  or (
    r.rolname !~ '^pg_'
    and not pg_has_role(r.oid, 'goldleaves_owner', 'usage')
    and exists (select from holders h where pg_has_role(r.oid, h.id, 'usage'))
  )
order by 1
