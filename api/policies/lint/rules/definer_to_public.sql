-- Everybody may execute a SECURITY DEFINER function.
-- Why: it runs with rights that its callers do not have, so who calls it has to be chosen.
-- Level: error
select 'pg_proc'::regclass as class, f.oid as id, f.name as object,
  format('everybody may execute %s, which runs as %I', f.name, pg_get_userbyid(f.owner)) as what,
  format('revoke execute on routine %s from public;', f.name) as mend
from functions f
where f.is_definer and exists (select from aclexplode(f.acl) a where a.grantee = 0)
