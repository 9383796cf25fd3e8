-- Somebody can log in as a tenant's role, or as one that is above tenants.
-- Why: who sends requests comes through PostgREST, and tenancy.enter() says for which organization. Whoever connects with a role that is
-- member, or may become it, sets app.current_org as they like. Superusers and those who migrate are above that.
-- Level: error
select 'pg_authid'::regclass as class, r.oid as id, quote_ident(r.rolname) as object,
  format('%I can log in%s', r.rolname, case when not b.is_one_itself then ' and may become member' end) as what,
  case
    when b.is_one_itself then format('alter role %I nologin;', r.rolname)
    else concat((
      select string_agg(format(E'revoke %I from %I granted by %I cascade;\n', role.rolname, r.rolname, pg_get_userbyid(m.grantor)), '')
      from pg_auth_members m
      join pg_roles role on role.oid = m.roleid
      where m.member = r.oid and pg_has_role(role.oid, 'member', b.becomes)
    ))
  end as mend
from pg_roles r
cross join lateral (
  select
    r.rolname in ('anon', 'member', 'service', 'platform_admin', 'goldleaves_owner', 'goldleaves_kernel') as is_one_itself,
    case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end as becomes
) as b
where r.rolcanlogin and not r.rolsuper
  and (
    b.is_one_itself
    or (
      r.rolname not in ('authenticator', 'goldleaves_migrator')
      and pg_has_role(r.oid, to_regrole('member'), b.becomes)
      and not pg_has_role(r.oid, to_regrole('goldleaves_migrator'), b.becomes)
    )
  )
