-- A function that cannot be inlined does not pin its search_path.
-- Why: what its names mean depends on who calls it. Functions that are inlined pay for a pinned one, and so are left out.
-- Level: warning
select 'pg_proc'::regclass as class, f.oid as id, f.name as object,
  format('%s looks up its names in the search_path of its caller', f.name) as what,
  format('alter routine %s set search_path = '''';', f.name) as mend
from functions f
where not f.is_definer and f.language not in ('internal', 'c')
  and not coalesce(array_to_string(f.config, ' ') ~ 'search_path=', false)
  and not (f.language = 'sql' and f.kind = 'f' and (f.volatility <> 'v' or not f.is_set))
