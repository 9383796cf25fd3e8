-- A function that says whose request this is does something else than it was made to.
-- Why: every policy asks it. One that answers from elsewhere opens all tables at once, and no policy looks any different. One that is
-- immutable is asked once for a plan that is kept, and answers the next request with the organization of the one before.
-- Level: error
select 'pg_proc'::regclass as class, p.oid as id, p.oid::regprocedure::text as object,
  format('%s is not the one that the migrations made', p.oid::regprocedure) as what,
  format(E'create or replace function %s returns %s language sql stable parallel safe as $$%s$$;\n'
    'alter function %s stable called on null input security invoker reset all;',
    m.signature, m.result, m.body, p.oid::regprocedure) as mend
from (
  values
    (
      to_regprocedure('tenancy.current_org()'), 'tenancy.current_org()', 'uuid',
      $$ select nullif(pg_catalog.current_setting('app.current_org', true), '')::pg_catalog.uuid $$
    ),
    (
      to_regprocedure('tenancy.current_user_id()'), 'tenancy.current_user_id()', 'uuid',
      $$ select nullif(pg_catalog.current_setting('app.current_user_id', true), '')::pg_catalog.uuid $$
    ),
    (
      to_regprocedure('tenancy.current_role_in(text[])'), 'tenancy.current_role_in(variadic p_roles text[])', 'boolean',
      $$
  select coalesce(pg_catalog.current_setting('app.current_org_role', true), '') = any (p_roles)
    or pg_catalog.string_to_array(coalesce(pg_catalog.current_setting('app.current_org_role', true), ''), ',') && p_roles
$$
    ),
    (
      to_regprocedure('tenancy.current_org_for(text[])'), 'tenancy.current_org_for(variadic p_roles text[])', 'uuid',
      $$
  select case
    when pg_catalog.string_to_array(pg_catalog.current_setting('app.current_org_role', true), ',') operator(pg_catalog.&&) p_roles
    then nullif(pg_catalog.current_setting('app.current_org', true), '')::pg_catalog.uuid
  end
$$
    ),
    (
      to_regprocedure('tenancy.my_organizations()'), 'tenancy.my_organizations()', 'uuid[]',
      $$ select coalesce(nullif(pg_catalog.current_setting('app.my_organizations', true), ''), '{}')::pg_catalog.uuid[] $$
    )
) as m (id, signature, result, body)
join pg_proc p on p.oid = m.id
-- Whoever pastes a function indents it.
where regexp_replace(p.prosrc, '\s+', ' ', 'g') <> regexp_replace(m.body, '\s+', ' ', 'g')
  or p.prolang <> (select oid from pg_language where lanname = 'sql')
  or p.provolatile <> 's'
