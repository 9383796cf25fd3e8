-- A role that serves requests is a member of one that is above tenants, or of that of tenants.
-- Why: it has that role's rights, or may take them, in every request. Predefined roles like pg_read_all_data read every table, and
-- whoever may become member without coming through PostgREST says itself for which organization.
-- Level: error
select 'pg_authid'::regclass as class, m.member as id, member.name as object,
  format('%s is a member of %I', member.name, role.rolname) as what,
  format('revoke %I from %s granted by %I cascade;', role.rolname, member.name, pg_get_userbyid(m.grantor)) as mend
from pg_auth_members m
join pg_roles role on role.oid = m.roleid
join (
  select oid, name from request_roles where oid <> 0
  union all
  select oid, quote_ident(rolname) from pg_roles where rolname in ('goldleaves_owner', 'goldleaves_kernel')
) as member on member.oid = m.member
where role.rolname in ('goldleaves_owner', 'goldleaves_kernel', 'goldleaves_migrator')
  or role.rolsuper or role.rolbypassrls or role.rolcreaterole
  or role.rolname in ('authenticator', 'sidecar', 'monitor')
  -- Policies for the staff hold for whoever is a member of theirs. PostgREST's login has to become it, and inherits nothing.
  or (role.rolname in ('platform_admin', 'service', 'member') and member.name <> 'authenticator')
  or (
    role.rolname ~ '^pg_'
    and not (member.name = 'monitor' and role.rolname in ('pg_monitor', 'pg_read_all_settings', 'pg_read_all_stats', 'pg_stat_scan_tables'))
  )
