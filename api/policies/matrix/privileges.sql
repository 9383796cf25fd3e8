select
  r.name,
  t.name,
  coalesce(array_agg(a.attname::text) filter (where has_column_privilege(r.name, c.oid, a.attnum, 'select')), '{}'),
  coalesce(array_agg(a.attname::text) filter (where has_column_privilege(r.name, c.oid, a.attnum, 'insert')), '{}'),
  coalesce(array_agg(a.attname::text) filter (where has_column_privilege(r.name, c.oid, a.attnum, 'update')), '{}'),
  has_table_privilege(r.name, c.oid, 'truncate'),
  pg_has_role(r.name, c.relowner, 'usage')
from unnest(%(roles)s::text[]) as r (name)
cross join unnest(%(tables)s::text[]) as t (name)
join pg_catalog.pg_class c on c.oid = t.name::regclass
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
group by r.name, t.name, c.oid, c.relowner
