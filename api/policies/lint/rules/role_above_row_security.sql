-- A role of the product is a superuser, or bypasses row security.
-- Why: no policy holds for it. None of them needs that: functions of the kernel get in by policies of their own.
-- Level: error
select 'pg_authid'::regclass as class, r.oid as id, quote_ident(r.rolname) as object,
  format('%I %s', r.rolname, concat_ws(' and ', case when r.rolsuper then 'is a superuser' end,
    case when r.rolbypassrls then 'bypasses row security' end)) as what,
  format('alter role %I %s;', r.rolname, concat_ws(' ', case when r.rolsuper then 'nosuperuser' end,
    case when r.rolbypassrls then 'nobypassrls' end)) as mend
from pg_roles r
where (r.rolsuper or r.rolbypassrls)
  and (
    r.rolname in ('goldleaves_migrator', 'goldleaves_owner', 'goldleaves_kernel')
    or r.oid in (select oid from request_roles)
  )
