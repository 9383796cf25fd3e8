-- A view reads its tables as its owner.
-- Why: the policies of the tables are asked about the owner of the view and not about whoever sends the request.
-- Level: error
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s reads its tables as %I', r.name, pg_get_userbyid(r.owner)) as what,
  format('alter view %s set (security_invoker = true);', r.name) as mend
from relations r
where r.kind = 'v'
  and not coalesce((
    select option_value::boolean from pg_options_to_table(r.options) where option_name = 'security_invoker'
  ), false)
