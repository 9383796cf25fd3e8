-- Schema api has a table.
-- Why: it is dropped and rebuilt with every release, and a column that is added to a table there is published at once. What is exposed
-- are views.
-- Level: error
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s is a table, and PostgREST exposes it', r.name) as what,
  format(E'alter table %s set schema app;\n-- and show it by a view in sql/api/', r.name) as mend
from relations r
where r.kind in ('r', 'p') and r.schema = to_regnamespace('api')
