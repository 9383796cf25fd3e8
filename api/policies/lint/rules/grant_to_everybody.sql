-- PUBLIC or anon is granted a table with rows of tenants.
-- Why: nobody has signed in there, so there is no organization whose rows it could be about, and every role has what PUBLIC has.
-- Level: error
select 'pg_class'::regclass as class, t.oid as id, t.name as object,
  format('%s has %s on %s', g.grantee_name, lower(g.privileges), t.name) as what,
  format('revoke %s on %s from %s cascade;', lower(g.privileges), t.name, g.grantee_name) as mend
from tenant_tables t
join (
  select relation, grantee_name,
    string_agg(distinct privilege || coalesce(' (' || column_name || ')', ''), ', ') as privileges
  from grants
  where grantee in (0, coalesce(to_regrole('anon')::oid, 0))
  group by relation, grantee_name
) as g on g.relation = t.oid
