-- A role that serves requests may truncate a table, refer to it, put triggers on it, or maintain it.
-- Why: TRUNCATE and foreign keys ask no policy, and a trigger runs as whoever writes. No request needs any of them.
-- Level: error
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s has %s on %s', g.grantee_name, lower(g.privileges), r.name) as what,
  format('revoke %s on %s from %s cascade;', lower(g.privileges), r.name, g.grantee_name) as mend
from relations r
join (
  select relation, grantee_name,
    string_agg(distinct privilege || coalesce(' (' || column_name || ')', ''), ', ') as privileges
  from grants
  where privilege in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN') and grantee in (select oid from request_roles)
  group by relation, grantee_name
) as g on g.relation = r.oid
