-- A policy is RESTRICTIVE.
-- Why: Citus turns it PERMISSIVE on its shards, where it then lets in instead of keeping out. What it asks belongs into each permissive
-- policy.
-- Level: error
select 'pg_policy'::regclass as class, p.oid as id, p.address as object,
  format('%s restricts the other policies of %s', p.name, p.table_name) as what,
  coalesce((
    select string_agg(format(E'alter policy %s%s%s;\n', o.address,
        ' using ((' || o.using_text || ') and (' || p.using_text || '))',
        ' with check ((' || o.check_text || ') and (' || coalesce(p.check_text, p.using_text) || '))'), '' order by o.name)
    from policies o
    where o.relation = p.relation and o.is_permissive
      and ('*' in (o.command, p.command) or o.command = p.command)
      and (o.roles && p.roles or 0 = any (o.roles || p.roles))
  ), '') || format('drop policy %s;', p.address) as mend
from policies p
where not p.is_permissive
