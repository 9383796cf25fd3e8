-- A table refers to organizations, and has no organization_id.
-- Why: its rows are of tenants, and nothing knows it: what the policies of such tables have to say, and who may do what with them, is
-- looked up by that name, here and by `goldleaves policies matrix`.
-- Level: warning
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s says by %I whose its rows are', r.name, a.attname) as what,
  format(E'alter table %s rename column %I to organization_id;\n-- or, when they are not of tenants: comment on table %1$s is %3$L;',
    r.name, a.attname, 'goldleaves lint organization_by_another_name: <whose they are>') as mend
from relations r
join pg_constraint k on k.conrelid = r.oid and k.contype = 'f' and k.conparentid = 0
join pg_attribute a on a.attrelid = r.oid and a.attnum = k.conkey[1]
where k.confrelid = to_regclass('tenancy.organizations')
  and r.oid not in (select oid from tenant_tables)
  -- People belong to several, and one of these is their default.
  and r.oid is distinct from to_regclass('tenancy.users')
