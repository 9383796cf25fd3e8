-- A table with rows of tenants has its row security off.
-- Why: its policies are not asked, so whoever has a grant on it, or on the partition itself, reads every tenant's rows.
-- Level: error
select 'pg_class'::regclass as class, t.oid as id, t.name as object,
  format('row security of %s is off', t.name) as what,
  format('alter table %s enable row level security;', t.name) as mend
from tenant_tables t
where not t.has_row_security
