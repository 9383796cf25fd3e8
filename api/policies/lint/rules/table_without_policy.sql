-- A table with rows of tenants that somebody is granted has no policy at all.
-- Why: row security without a policy shows nothing to anybody, so the grants mislead, and functions that read the table find it empty.
-- Level: warning
select 'pg_class'::regclass as class, t.oid as id, t.name as object,
  format('%s has no policy, so its grants reach no row', t.name) as what,
  format(
    'create policy %I on %s to goldleaves_kernel using (true) with check (true); -- and what members may do: policies/app.cases.sql shows how',
    (parse_ident(t.name))[2] || '_kernel', t.name
  ) as mend
from tenant_tables t
where t.oid not in (select relation from policies)
  and t.oid in (select relation from grants)
