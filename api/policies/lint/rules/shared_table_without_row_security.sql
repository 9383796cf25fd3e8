-- A table that requests reach has neither an organization_id nor row security.
-- Why: every tenant reads all of it. That is right for what is the same for everybody, which its comment should say, and wrong for the
-- rest.
-- Level: warning
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s has no organization_id and no row security, and %s may reach it', r.name,
    (select string_agg(distinct g.grantee_name, ', ') from grants g
     where g.relation = r.oid and g.grantee in (select oid from request_roles))) as what,
  format(E'comment on table %s is %L;\n-- or revoke what they do not need', r.name, concat_ws(E'\n', obj_description(r.oid, 'pg_class'),
    'goldleaves lint shared_table_without_row_security: why every tenant may read all of it')) as mend
from relations r
where r.kind in ('r', 'p') and not r.has_row_security
  and r.oid not in (select oid from tenant_tables)
  and r.oid in (select relation from grants where grantee in (select oid from request_roles))
