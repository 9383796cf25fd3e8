-- An index is not valid.
-- Why: a CREATE INDEX CONCURRENTLY that failed has left it. Every write keeps it up, no query uses it, and a unique one may hold
-- duplicates.
-- Level: warning
select 'pg_class'::regclass as class, i.indexrelid as id, i.indexrelid::regclass::text as object,
  format('%s is not valid', i.indexrelid::regclass) as what,
  format(E'drop index %s;\n%s;', i.indexrelid::regclass, pg_get_indexdef(i.indexrelid)) as mend
from pg_index i
join relations r on r.oid = i.indrelid
where not i.indisvalid
