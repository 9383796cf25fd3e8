-- A policy contains a subquery.
-- Why: it runs for the rows of every query, under the row security of the table that it reads, and Citus refuses to distribute the table.
-- What a request may do is looked up once, in tenancy.enter(), and policies compare settings.
-- Level: error
select 'pg_policy'::regclass as class, p.oid as id, p.address as object,
  format('%s looks something up for each query', p.name) as what,
  format(E'drop policy %s;\n-- then write it again in policies/ without the subquery: organization_id = tenancy.current_org_for(…)',
    p.address) as mend
from policies p
where concat(p.using_tree, p.check_tree) ~ '\{SUBLINK '
