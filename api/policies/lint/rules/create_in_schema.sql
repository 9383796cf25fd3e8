-- A role that serves requests may create objects in a schema.
-- Why: what it puts there can stand in the way of a name that others look up, and runs with their rights.
-- Level: error
select 'pg_namespace'::regclass as class, n.oid as id, quote_ident(n.nspname) as object,
  format('%s may create objects in schema %I', r.name, n.nspname) as what,
  format('revoke create on schema %I from %s cascade;', n.nspname, r.name) as mend
from pg_namespace n
cross join lateral aclexplode(n.nspacl) as a
join request_roles r on r.oid = a.grantee
where a.privilege_type = 'CREATE' and n.nspname !~ '^pg_(toast|temp)'
