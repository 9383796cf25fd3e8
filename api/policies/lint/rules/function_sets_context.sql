-- A function that requests may call sets whose request this is.
-- Why: only tenancy.enter() and what it calls have looked up who may act for which organization. Whoever calls another function that sets
-- app.current_org, or the role in it, may be everybody's owner until the end of the transaction.
-- Level: error
select 'pg_proc'::regclass as class, p.oid as id, p.oid::regprocedure::text as object,
  format('%s sets the context, and %s may call it', p.oid::regprocedure, string_agg(r.name, ', ' order by r.name)) as what,
  format('revoke execute on routine %s from public, %s cascade;', p.oid::regprocedure, string_agg(r.name, ', ' order by r.name)) as mend
from pg_proc p
join request_roles r on r.oid <> 0 and has_function_privilege(r.oid, p.oid, 'execute')
where p.pronamespace not in (select oid from pg_namespace where nspname ~ '^(pg_|information_schema$)')
  and (
    array_to_string(p.proconfig, ' ') ~* '(^| )app\.(current_|my_organizations)'
    or concat(p.prosrc, pg_get_function_sqlbody(p.oid)) ~* 'set_config\s*\(\s*''app\.(current_|my_organizations)'
    or p.prosrc ~* '\mset\s+((local|session)\s+)?app\.(current_|my_organizations)'
    -- The one that PostgREST calls asks for those who the token and the headers name.
    or (p.prosrc ~* '\mtenancy\.(set_context|enter|enter_with_key)\s*\(' and p.oid is distinct from to_regprocedure('tenancy.pre_request()'))
  )
group by p.oid
