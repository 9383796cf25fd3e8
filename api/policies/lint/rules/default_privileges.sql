-- What is created from now on is granted to PUBLIC or to a role that serves requests.
-- Why: the next table is open before anybody has written its policies.
-- Level: error
select 'pg_default_acl'::regclass as class, d.oid as id,
  concat('default privileges of ', quote_ident(pg_get_userbyid(d.defaclrole)), ' in schema ' || quote_ident(n.nspname)) as object,
  format('%s gets %s on %s that %I creates%s', r.name, string_agg(lower(a.privilege_type), ', '), o.kind, pg_get_userbyid(d.defaclrole),
    ' in schema ' || quote_ident(n.nspname)) as what,
  format('alter default privileges for role %I%s revoke all on %s from %s;', pg_get_userbyid(d.defaclrole),
    ' in schema ' || quote_ident(n.nspname), o.kind, r.name) as mend
from pg_default_acl d
cross join lateral aclexplode(d.defaclacl) as a
join request_roles r on r.oid = a.grantee
join (values ('r', 'tables'), ('S', 'sequences'), ('f', 'routines'), ('T', 'types'), ('n', 'schemas')) as o (letter, kind)
  on o.letter = d.defaclobjtype
left join pg_namespace n on n.oid = d.defaclnamespace
where (n.oid is null or n.oid in (select oid from ours))
  -- Types are for everybody by the rules of Postgres itself, and useless without the rest.
  and d.defaclobjtype <> 'T'
group by d.oid, d.defaclrole, n.nspname, r.name, o.kind
