-- A SECURITY DEFINER function does not pin its search_path.
-- Why: a caller can put objects of their own where the function looks for its names, also into pg_temp, which comes first unless the
-- path names it last, and have them run with its rights.
-- Level: error
select 'pg_proc'::regclass as class, f.oid as id, f.name as object,
  format('%s runs as %I and looks up its names %s', f.name, pg_get_userbyid(f.owner),
    coalesce('in ' || substr(pinned.setting, 13), 'in the search_path of its caller')) as what,
  format(E'alter routine %s set search_path = '''';\n-- and qualify every name in it', f.name) as mend
from functions f
left join lateral (
  select setting from unnest(f.config) as setting where setting like 'search\_path=%'
) as pinned on true
where f.is_definer
  and pinned.setting in ('search_path=""', 'search_path=pg_catalog') is not true
  and (
    pinned.setting like '%, pg\_temp' is not true
    or exists (
      select from regexp_split_to_table(substr(pinned.setting, 13), ', ') as schema
      where schema not in ('pg_catalog', 'pg_temp') and schema not in (select name from ours)
    )
  )
