-- A role that the session can become and that no policy keeps from any row of the table %(table)s. That is asked of the catalog and
-- not of a list, as policies can be changed by hand. `become` is 'set' from PostgreSQL 16 on, 'member' before.
with actor as (
  select oid, rolname, rolsuper or rolbypassrls as stands_above
  from pg_roles
  where pg_has_role(current_user, oid, %(become)s)
)
select actor.rolname
from pg_class c
cross join actor
cross join lateral (
  select bool_or(pg_get_expr(p.polqual, p.polrelid) = 'true') filter (where p.polpermissive) and bool_and(p.polpermissive) as all_rows
  from pg_policy p
  where p.polrelid = c.oid
    and p.polcmd in ('r', '*')
    and exists (select from unnest(p.polroles) as id where id = 0 or pg_has_role(actor.oid, id, 'usage'))
) as policies
where c.oid = %(table)s
  and has_schema_privilege(actor.oid, c.relnamespace, 'usage')
  and has_table_privilege(actor.oid, c.oid, 'select')
  and (
    actor.stands_above
    or not c.relrowsecurity
    or (not c.relforcerowsecurity and pg_has_role(actor.oid, c.relowner, 'usage'))
    or policies.all_rows
  )
order by actor.rolname = current_user desc, actor.rolname
limit 1
