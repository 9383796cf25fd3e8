-- A role that serves requests may grant on what it was granted.
-- Why: who may do what is then no longer said in policies/ alone.
-- Level: error
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s may grant %s on %s to others', g.grantee_name, lower(g.privileges), r.name) as what,
  format('revoke grant option for %s on %s from %s cascade;', lower(g.privileges), r.name, g.grantee_name) as mend
from relations r
join (
  select relation, grantee_name,
    string_agg(distinct privilege || coalesce(' (' || column_name || ')', ''), ', ') as privileges
  from grants
  where is_grantable and grantee in (select oid from request_roles)
  group by relation, grantee_name
) as g on g.relation = r.oid
