-- A role that serves requests may create objects in a schema, or schemas.
-- Why: what it puts there can stand in the way of a name that others look up, and runs with their rights.
-- Level: error
select 'pg_namespace'::regclass as class, n.oid as id, quote_ident(n.nspname) as object,
  format('%s may create objects in schema %I', r.name, n.nspname) as what,
  format('revoke create on schema %I from %s cascade;', n.nspname, r.name) as mend
from pg_namespace n
cross join lateral aclexplode(n.nspacl) as a
join request_roles r on r.oid = a.grantee
where a.privilege_type = 'CREATE' and n.nspname !~ '^pg_(toast|temp)' and n.nspowner <> r.oid
union all
select 'pg_namespace'::regclass, n.oid, quote_ident(n.nspname),
  format('%s owns schema %I', r.name, n.nspname),
  format('alter schema %I owner to goldleaves_owner;', n.nspname)
from pg_namespace n
join request_roles r on r.oid = n.nspowner
where n.nspname !~ '^pg_(toast|temp)'
union all
select 'pg_database'::regclass, d.oid, 'database ' || quote_ident(d.datname),
  format('%s may create schemas in database %I', r.name, d.datname),
  format('revoke create on database %I from %s cascade;', d.datname, r.name)
from pg_database d
cross join lateral aclexplode(d.datacl) as a
join request_roles r on r.oid = a.grantee
where a.privilege_type = 'CREATE' and d.datname = current_database()
