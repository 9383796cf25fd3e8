-- Partitions on all levels: what makes a row theirs, and all that decides who reaches them.
select
  format('%%I.%%I', (select n.nspname from pg_catalog.pg_namespace n where n.oid = c.relnamespace), c.relname),
  format('%%I.%%I', (select n.nspname from pg_catalog.pg_namespace n where n.oid = p.relnamespace), p.relname),
  root.name,
  (select array_agg(a.attname::text) from pg_catalog.pg_attribute a where a.attrelid = p.oid and a.attnum = any (k.partattrs::int2[])),
  pg_catalog.pg_get_expr(c.relpartbound, c.oid),
  md5(concat_ws(
    ' ', c.relkind, p.oid, c.relowner, c.relrowsecurity, c.relforcerowsecurity, c.relacl,
    (select array_agg(row (a.attname, a.attacl)::text order by a.attnum) from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attacl is not null),
    (
      select array_agg(
        row (
          y.polcmd, y.polpermissive, y.polroles, pg_catalog.pg_get_expr(y.polqual, c.oid), pg_catalog.pg_get_expr(y.polwithcheck, c.oid)
        )::text
        order by y.polname
      )
      from pg_catalog.pg_policy y
      where y.polrelid = c.oid
    )
  ))
from unnest(%(roots)s::text[]) as root (name)
cross join lateral pg_catalog.pg_partition_tree(root.name::regclass) t
join pg_catalog.pg_class c on c.oid = t.relid
join pg_catalog.pg_class p on p.oid = t.parentrelid
join pg_catalog.pg_partitioned_table k on k.partrelid = p.oid
where t.level > 0
order by 1
