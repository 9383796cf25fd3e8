-- Somebody can log in as a tenant's role, or as one that is above tenants.
-- Why: who sends requests comes through PostgREST, and tenancy.enter() says for which organization. Whoever connects with a role that is
-- member, or may become it, sets app.current_org as they like, and the others are let in everywhere. Superusers and those who migrate
-- are above that.
-- Level: error
with how as (
  select case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end as become
),
high as (
  select oid, rolname
  from pg_roles
  where rolname in ('anon', 'member', 'service', 'platform_admin', 'goldleaves_owner', 'goldleaves_kernel')
)
select 'pg_authid'::regclass as class, r.oid as id, quote_ident(r.rolname) as object,
  format('%I can log in%s', r.rolname, ' and may become ' || (
    select string_agg(quote_ident(high.rolname), ', ' order by high.rolname) from high
    where high.oid <> r.oid and pg_has_role(r.oid, high.oid, how.become)
  )) as what,
  case
    when r.oid in (select oid from high) then format('alter role %I nologin;', r.rolname)
    else (
      select string_agg(format('revoke %I from %I granted by %I cascade;', role.rolname, r.rolname, pg_get_userbyid(m.grantor)), E'\n')
      from pg_auth_members m
      join pg_roles role on role.oid = m.roleid
      where m.member = r.oid and exists (select from high where pg_has_role(role.oid, high.oid, how.become))
    )
  end as mend
from pg_roles r
cross join how
where r.rolcanlogin and not r.rolsuper
  and (
    r.oid in (select oid from high)
    or (
      r.rolname not in ('authenticator', 'goldleaves_migrator')
      and exists (select from high where pg_has_role(r.oid, high.oid, how.become))
      and not pg_has_role(r.oid, to_regrole('goldleaves_migrator'), how.become)
    )
  )
