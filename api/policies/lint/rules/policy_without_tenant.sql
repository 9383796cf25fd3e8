-- A policy lets somebody reach rows without binding them to their organization.
-- Why: each way through it has to lead over organization_id = tenancy.current_org(), or one tenant sees, or writes, the rows of another.
-- Only functions of the kernel and the provider's staff are above organizations.
-- Level: error
select 'pg_policy'::regclass as class, p.oid as id, p.address as object,
  format('%s lets %s %s rows of any organization: %s', p.name, p.role_names,
    case p.command when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'select and write' end,
    concat_ws(' ',
      case when not p.using_binds then 'using (' || p.using_text || ')' end,
      case when not p.check_binds then 'with check (' || p.check_text || ')' end)) as what,
  format('alter policy %s%s%s;', p.address,
    case when not p.using_binds then
      format(E'\n  using (%s = tenancy.current_org()%s)', t.tenant_column, ' and (' || nullif(p.using_text, 'true') || ')') end,
    case when not p.check_binds then
      format(E'\n  with check (%s = tenancy.current_org()%s)', t.tenant_column, ' and (' || nullif(p.check_text, 'true') || ')') end
  ) as mend
from policies p
join tenant_tables t on t.oid = p.relation
where p.is_permissive
  and exists (
    select from unnest(p.roles) as role
    where role not in (coalesce(to_regrole('goldleaves_kernel')::oid, 1), coalesce(to_regrole('platform_admin')::oid, 1))
  )
  and not (coalesce(p.using_binds, true) and coalesce(p.check_binds, true))
