-- An extension lives in schema public.
-- Why: its functions are found by everybody who looks up a name there, and its upgrades run with a superuser's rights.
-- Level: warning
select 'pg_extension'::regclass as class, e.oid as id, quote_ident(e.extname) as object,
  format('the extension %I is in schema public', e.extname) as what,
  format(E'create schema if not exists extensions;\nalter extension %I set schema extensions;', e.extname) as mend
from pg_extension e
where e.extnamespace = to_regnamespace('public')
