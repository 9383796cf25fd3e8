-- A role that serves requests is granted a materialized view or a foreign table.
-- Why: neither has row security, so it shows the rows of all tenants, also through a view of schema api.
-- Level: error
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s may read %s, which can have no row security', g.grantees, r.name) as what,
  format('revoke all on %s from %s cascade;', r.name, g.grantees) as mend
from relations r
join (
  select relation, string_agg(distinct grantee_name, ', ') as grantees
  from grants
  where grantee in (select oid from request_roles)
  group by relation
) as g on g.relation = r.oid
where r.kind in ('m', 'f') and r.schema is distinct from to_regnamespace('api')
