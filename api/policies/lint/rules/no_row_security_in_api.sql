-- Schema api has a materialized view or a foreign table.
-- Why: neither has row security. PostgREST shows all of it to whoever has a grant.
-- Level: error
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s is a %s, and PostgREST exposes it', r.name, k.kind) as what,
  format('alter %s %s set schema app;', k.kind, r.name) as mend
from relations r
join (values ('m', 'materialized view'), ('f', 'foreign table')) as k (letter, kind) on k.letter = r.kind
where r.schema = to_regnamespace('api')
