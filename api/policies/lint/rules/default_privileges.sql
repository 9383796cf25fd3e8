-- What is created from now on is granted to PUBLIC or to a role that serves requests.
-- Why: the next table is open before anybody has written its policies, and the next function can be called by everybody.
-- Level: error
select d.class, d.id, concat('default privileges of ', quote_ident(d.role), d.place) as object,
  format('%s gets %s on %s that %I creates%s', r.name, string_agg(lower(a.privilege_type), ', '), d.kind, d.role, d.place) as what,
  format('alter default privileges for role %I%s revoke all on %s from %s;', d.role, d.place, d.kind, r.name) as mend
from (
  select 'pg_default_acl'::regclass as class, d.oid as id, pg_get_userbyid(d.defaclrole) as role,
    ' in schema ' || quote_ident(n.nspname) as place, o.kind, d.defaclacl as acl
  from pg_default_acl d
  -- Types are for everybody by the rules of Postgres itself, and useless without the rest.
  join (values ('r', 'tables'), ('S', 'sequences'), ('f', 'routines'), ('n', 'schemas')) as o (letter, kind)
    on o.letter = d.defaclobjtype
  left join pg_namespace n on n.oid = d.defaclnamespace
  where n.oid is null or n.oid in (select oid from ours)
  union all
  -- So are functions, where nothing was said for their owner.
  select 'pg_authid'::regclass, r.oid, r.rolname, null, 'routines', acldefault('f', r.oid)
  from pg_roles r
  where r.rolname in ('goldleaves_owner', 'goldleaves_kernel')
    and not exists (
      select from pg_default_acl d where d.defaclrole = r.oid and d.defaclnamespace = 0 and d.defaclobjtype = 'f'
    )
) as d
cross join lateral aclexplode(d.acl) as a
join request_roles r on r.oid = a.grantee
group by d.class, d.id, d.role, d.place, d.kind, r.name
