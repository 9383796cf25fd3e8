-- Somebody above row security owns a view, or a SECURITY DEFINER function.
-- Why: what it does, it does past the row security of all tenants, whoever calls it. Superusers and who bypasses row security are not
-- asked, and policies let the provider's staff in everywhere.
-- Level: error
select o.class, o.id, o.object,
  format('%s %s belongs to %I, who is above row security', o.kind, o.object, r.rolname) as what,
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
where r.rolsuper or r.rolbypassrls
  or pg_has_role(r.oid, (select oid from pg_roles where rolname = 'platform_admin'), 'usage')
