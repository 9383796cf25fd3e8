-- A table with rows of tenants does not force its row security.
-- Why: its owner, and so every SECURITY DEFINER function of the owner, reads past the policies.
-- Level: error
select 'pg_class'::regclass as class, t.oid as id, t.name as object,
  format('row security of %s is not forced on its owner', t.name) as what,
  format('alter table %s force row level security;', t.name) as mend
from tenant_tables t
where not t.is_forced
