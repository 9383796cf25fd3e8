-- A SECURITY DEFINER function does not pin its search_path.
-- Why: a caller can put objects of their own where the function looks for its names, and have them run with its rights.
-- Level: error
select 'pg_proc'::regclass as class, f.oid as id, f.name as object,
  format('%s runs as %I with the search_path of its caller', f.name, pg_get_userbyid(f.owner)) as what,
  format(E'alter routine %s set search_path = '''';\n-- and qualify every name in it', f.name) as mend
from functions f
where f.is_definer
  and not coalesce(array_to_string(f.config, ' ') ~ 'search_path=("")?($| |pg_catalog, pg_temp)', false)
