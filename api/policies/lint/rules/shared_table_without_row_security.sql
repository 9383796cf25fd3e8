-- A table that requests reach has neither an organization_id nor row security.
-- Why: every tenant reads all of it. That is right for what is the same for everybody, which its comment should say, and wrong for the
-- rest.
-- Level: warning
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s has no organization_id and no row security, and %s may reach it', r.name, g.grantees) as what,
  format(E'revoke all on table %s from %s cascade;\n-- or, when it is the same for everybody: comment on table %1$s is %3$L;', r.name, g.grantees,
    'goldleaves lint shared_table_without_row_security: <why every tenant may read it>') as mend
from relations r
join (
  select relation, string_agg(distinct grantee_name, ', ') as grantees
  from grants
  where grantee in (select oid from request_roles)
  group by relation
) as g on g.relation = r.oid
where r.kind in ('r', 'p') and not r.has_row_security
  and r.oid not in (select oid from tenant_tables)
