-- A superuser owns a view, or a SECURITY DEFINER function.
-- Why: what it does, it does past all row security and all grants, whoever calls it.
-- Level: error
select o.class, o.id, o.object,
  format('%s %s belongs to the superuser %I', o.kind, o.object, pg_get_userbyid(o.owner)) as what,
  format('alter %s %s owner to %s;', o.kind, o.object, o.owner_to_be) as mend
from (
  select 'pg_class'::regclass as class, oid as id, name as object, 'view' as kind, owner, 'goldleaves_owner' as owner_to_be
  from relations
  where kind = 'v'
  union all
  select 'pg_proc'::regclass, oid, name, 'function', owner, 'goldleaves_kernel'
  from functions
  where is_definer
) as o
join pg_roles r on r.oid = o.owner
where r.rolsuper
