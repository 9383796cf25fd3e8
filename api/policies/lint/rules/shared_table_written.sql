-- A role that serves requests may write a table that has neither an organization_id nor row security.
-- Why: what one tenant changes there, it changes for all of them.
-- Level: error
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s may %s in %s, which has no row security', g.grantee_name, lower(g.privileges), r.name) as what,
  format('revoke %s on %s from %s cascade;', lower(g.privileges), r.name, g.grantee_name) as mend
from relations r
join (
  select relation, grantee_name,
    string_agg(distinct privilege || coalesce(' (' || column_name || ')', ''), ', ') as privileges
  from grants
  where privilege in ('INSERT', 'UPDATE', 'DELETE') and grantee in (select oid from request_roles)
  group by relation, grantee_name
) as g on g.relation = r.oid
where r.kind in ('r', 'p') and not r.has_row_security
  and r.oid not in (select oid from tenant_tables)
