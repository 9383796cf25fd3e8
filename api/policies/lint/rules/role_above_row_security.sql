-- A role of the product is a superuser, bypasses row security, replicates, or serves requests and may make roles.
-- Why: no policy holds for it: a replica is sent every row, and who makes roles may grant itself others. None of them needs that:
-- functions of the kernel get in by policies of their own.
-- Level: error
select 'pg_authid'::regclass as class, r.oid as id, quote_ident(r.rolname) as object,
  format('%I %s', r.rolname, concat_ws(' and ', case when r.rolsuper then 'is a superuser' end,
    case when r.rolbypassrls then 'bypasses row security' end, case when r.rolreplication then 'replicates' end,
    case when r.rolcreaterole then 'may make roles' end)) as what,
  format('alter role %I %s;', r.rolname, concat_ws(' ', case when r.rolsuper then 'nosuperuser' end,
    case when r.rolbypassrls then 'nobypassrls' end, case when r.rolreplication then 'noreplication' end,
    case when r.rolcreaterole and r.rolname <> 'goldleaves_migrator' then 'nocreaterole' end)) as mend
from pg_roles r
where (r.rolsuper or r.rolbypassrls or r.rolreplication or (r.rolcreaterole and r.rolname <> 'goldleaves_migrator'))
  and (
    r.rolname in ('goldleaves_migrator', 'goldleaves_owner', 'goldleaves_kernel')
    or r.oid in (select oid from request_roles)
  )
