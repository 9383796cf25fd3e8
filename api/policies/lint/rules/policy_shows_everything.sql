-- A policy of a table without organization_id does not depend on the row, or one of tenancy.users not on who asks.
-- Why: whoever it lets in reaches all rows, of all tenants, as if there were no row security. People, for one, belong to several
-- organizations and are shown to none of the others.
-- Level: error
select 'pg_policy'::regclass as class, p.oid as id, p.address as object,
  format('%s lets %s reach %s: using (%s)', p.name, p.role_names,
    case when p.relation = to_regclass('tenancy.users') then 'other people' else 'every row' end, p.using_text) as what,
  format(E'drop policy %s;\n-- or, when its rows are the same for everybody: comment on policy %s is %L;', p.address, p.address,
    'goldleaves lint policy_shows_everything: <why everybody may reach them>') as mend
from policies p
where p.is_permissive
  and p.relation not in (select oid from tenant_tables)
  and case
    when p.relation = to_regclass('tenancy.users') then not coalesce(p.using_binds, true)
    else p.using_tree !~ '\{(VAR|SUBLINK) ' and p.using_text <> 'false'
  end
  and exists (
    select from unnest(p.roles) as role
    where role not in (coalesce(to_regrole('goldleaves_kernel')::oid, 1), coalesce(to_regrole('platform_admin')::oid, 1))
  )
