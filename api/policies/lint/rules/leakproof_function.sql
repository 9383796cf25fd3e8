-- A function was declared LEAKPROOF by hand.
-- Why: Postgres may then ask it about rows before it asks the policies. What it tells of them, by an error or a side effect, a tenant
-- learns of others.
-- Level: error
select 'pg_proc'::regclass as class, p.oid as id, p.oid::regprocedure::text as object,
  format('%s is declared leakproof', p.oid::regprocedure) as what,
  format('alter function %s not leakproof;', p.oid::regprocedure) as mend
from pg_proc p
where p.proleakproof
  and p.pronamespace not in (select oid from pg_namespace where nspname ~ '^(pg_|information_schema$)')
  and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
