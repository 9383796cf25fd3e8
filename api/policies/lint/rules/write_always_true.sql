-- A policy lets everybody it is for write any row.
-- Why: a condition that is always true is none. Only the kernel, whose functions check who calls, writes rows of all tenants.
-- Level: error
select 'pg_policy'::regclass as class, p.oid as id, p.address as object,
  format('%s lets %s %s any row: %s', p.name, p.role_names,
    case p.command when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'write' end,
    concat_ws(' ', 'using (' || p.using_text || ')', 'with check (' || p.check_text || ')')) as what,
  case p.command
    when '*' then format(
      E'drop policy %s;\ncreate policy %s for select to %s using (%s);', p.address, p.address, p.role_names, coalesce(p.using_text, 'false'))
    else format('drop policy %s;', p.address)
  end as mend
from policies p
where p.command <> 'r' and p.is_permissive
  and p.roles <> array[coalesce(to_regrole('goldleaves_kernel')::oid, 1)]
  -- Neither a column nor a function in it: what is left are constants.
  and (
    (p.using_tree !~ '\{(VAR|FUNCEXPR|SUBLINK) ' and p.using_text <> 'false')
    or (p.check_tree !~ '\{(VAR|FUNCEXPR|SUBLINK) ' and p.check_text <> 'false')
  )
