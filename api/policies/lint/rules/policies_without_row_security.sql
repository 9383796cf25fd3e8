-- A table has policies, but its row security is off.
-- Why: somebody believes that these policies protect the table, and nothing asks them.
-- Level: error
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s has policies, and its row security is off', r.name) as what,
  format('alter table %s enable row level security;', r.name) as mend
from relations r
where not r.has_row_security
  and r.oid in (select relation from policies)
  and r.oid not in (select oid from tenant_tables)
