-- A schema, table, view or function of ours belongs to somebody else than goldleaves_owner.
-- Why: its owner may change and drop it, disable its row security, and grant it to anybody. Functions may be the kernel's.
-- Level: error
select o.class, o.id, o.object,
  format('%s belongs to %I', o.object, pg_get_userbyid(o.owner)) as what,
  format('alter %s owner to goldleaves_owner;', o.object) as mend
from (
  select 'pg_namespace'::regclass as class, oid as id, 'schema ' || name as object, owner
  from ours
  union all
  select 'pg_class'::regclass, r.oid,
    case r.kind when 'v' then 'view ' when 'm' then 'materialized view ' when 'f' then 'foreign table ' else 'table ' end || r.name, r.owner
  from relations r
  where r.schema in (select oid from ours)
  union all
  select 'pg_proc'::regclass, f.oid, 'routine ' || f.name, f.owner
  from functions f
  where f.schema in (select oid from ours)
    and f.owner is distinct from to_regrole('goldleaves_kernel')
    and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = f.oid and d.deptype = 'e')
) as o
where o.owner <> to_regrole('goldleaves_owner')
