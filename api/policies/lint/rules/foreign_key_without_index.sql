-- A foreign key has no index.
-- Why: whoever deletes or changes what it refers to reads the whole table, and holds locks as long.
-- Level: warning
select 'pg_constraint'::regclass as class, k.oid as id, format('%I on %s', k.conname, r.name) as object,
  format('%I of %s has no index', k.conname, r.name) as what,
  format('create index on %s (%s);', r.name, (
    select string_agg(quote_ident(a.attname), ', ' order by position)
    from unnest(k.conkey) with ordinality as key (number, position)
    join pg_attribute a on a.attrelid = k.conrelid and a.attnum = key.number
  )) as mend
from pg_constraint k
join relations r on r.oid = k.conrelid
where k.contype = 'f' and k.conparentid = 0
  and not exists (
    select from pg_index i
    where i.indrelid = k.conrelid and i.indisvalid and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey
  )
