-- A function that policies call cannot be inlined.
-- Why: it is then called for every row instead of becoming part of the query, so that no index is used. Inlinable is: language sql, stable
-- or immutable, one select, not SECURITY DEFINER, not STRICT, no SET.
-- Level: error
select 'pg_proc'::regclass as class, f.oid as id, f.name as object,
  format('%s is called for each row: it is %s', f.name, concat_ws(', ',
    case when f.language <> 'sql' then 'written in ' || f.language end,
    case when f.volatility = 'v' then 'volatile' end,
    case when f.is_definer then 'security definer' end,
    case when f.is_strict then 'strict' end,
    case when f.config is not null then 'set ' || array_to_string(f.config, ', ') end)) as what,
  concat(
    case when f.language <> 'sql' then E'-- Write it again in language sql, as one select.\n' end,
    format('alter function %s stable called on null input security invoker reset all;', f.name)
  ) as mend
from (
  select p.oid, p.oid::regprocedure::text as name, p.prosecdef as is_definer, p.proconfig as config, p.provolatile as volatility,
    p.proisstrict as is_strict, language.lanname as language
  from pg_proc p
  join pg_language language on language.oid = p.prolang
  where p.oid in (
      to_regprocedure('tenancy.current_org()'), to_regprocedure('tenancy.current_user_id()'),
      to_regprocedure('tenancy.current_role_in(text[])'), to_regprocedure('tenancy.current_org_for(text[])'),
      to_regprocedure('tenancy.my_organizations()')
    )
    or p.oid in (
      select d.refobjid from pg_depend d
      where d.classid = 'pg_policy'::regclass and d.refclassid = 'pg_proc'::regclass and d.objid in (select oid from policies)
    )
) as f
where f.language <> 'sql' or f.volatility = 'v' or f.is_definer or f.is_strict or f.config is not null
