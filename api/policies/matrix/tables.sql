-- Tables with rows of tenants, or with %(only)s exactly those named, and what it takes to make a row of each.
select
  format('%%I.%%I', n.nspname, c.relname),
  coalesce(tenant.attname, ''),
  case when c.relispartition then (
    select format('%%I.%%I', (select n.nspname from pg_catalog.pg_namespace n where n.oid = r.relnamespace), r.relname) from pg_catalog.pg_class r where r.oid = pg_catalog.pg_partition_root(c.oid)
  ) end,
  (
    select jsonb_agg(
      jsonb_build_object(
        'name', a.attname,
        'type_name', coalesce(e.typname, b.typname),
        'category', coalesce(e.typcategory, b.typcategory),
        'kind', coalesce(e.typtype, b.typtype),
        'is_array', e.oid is not null,
        'length', case
          when coalesce(e.typname, b.typname) in ('varchar', 'bpchar') then nullif(greatest(a.atttypmod, t.typtypmod), -1) - 4
          when coalesce(e.typname, b.typname) in ('bit', 'varbit') then nullif(greatest(a.atttypmod, t.typtypmod), -1)
        end,
        'not_null', a.attnotnull or t.typnotnull,
        'has_default', a.atthasdef or a.attidentity <> '' or t.typdefault is not null,
        'is_written', a.attgenerated = '' and a.attidentity <> 'a',
        'labels', coalesce(
          (select jsonb_agg(l.enumlabel order by l.enumsortorder) from pg_catalog.pg_enum l where l.enumtypid = coalesce(e.oid, b.oid)), '[]'
        ),
        'parts', coalesce((select k.relnatts from pg_catalog.pg_class k where k.oid = coalesce(e.typrelid, b.typrelid)), 0)
      )
      order by a.attnum
    )
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_type t on t.oid = a.atttypid
    join pg_catalog.pg_type b on b.oid = case t.typtype when 'd' then t.typbasetype else t.oid end
    left join pg_catalog.pg_type e on e.oid = b.typelem and b.typcategory = 'A'
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  ),
  (
    select coalesce(jsonb_agg(jsonb_build_object('name', k.conname, 'columns', k.columns, 'definition', k.definition)), '[]')
    from (
      select k.conname, pg_catalog.pg_get_constraintdef(k.oid) as definition,
        (select jsonb_agg(a.attname) from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum = any (k.conkey)) as columns
      from pg_catalog.pg_constraint k
      where k.conrelid = c.oid and k.contype = 'c' and k.conkey <> '{}'
      union all
      -- Those of a domain are about the columns that are of it.
      select k.conname, pg_catalog.pg_get_constraintdef(k.oid), jsonb_build_array(a.attname)
      from pg_catalog.pg_attribute a
      join pg_catalog.pg_constraint k on k.contypid = a.atttypid and k.contype = 'c'
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    ) as k
  ),
  (
    select coalesce(jsonb_object_agg(i.name, i.columns), '{}')
    from (
      select x.indexrelid::regclass::text as name, jsonb_agg(a.attname) as columns
      from pg_catalog.pg_index x
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = any (x.indkey::int2[])
      where x.indrelid = c.oid and x.indisunique
      group by 1
    ) as i
  ),
  (
    select coalesce(jsonb_agg(jsonb_build_object(
      'table', (select format('%%I.%%I', (select n.nspname from pg_catalog.pg_namespace n where n.oid = f.relnamespace), f.relname) from pg_catalog.pg_class f where f.oid = k.confrelid),
      'columns', (select jsonb_agg(a.attname order by o.position) from unnest(k.conkey) with ordinality o (n, position)
                  join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = o.n),
      'referenced', (select jsonb_agg(a.attname order by o.position) from unnest(k.confkey) with ordinality o (n, position)
                     join pg_catalog.pg_attribute a on a.attrelid = k.confrelid and a.attnum = o.n)
    )), '[]')
    from pg_catalog.pg_constraint k
    where k.conrelid = c.oid and k.contype = 'f' and k.conparentid = 0
  )
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_attribute tenant on tenant.attrelid = c.oid and tenant.attnum > 0 and not tenant.attisdropped
  and tenant.attname = case when n.nspname = 'tenancy' and c.relname = 'organizations' then 'id' else 'organization_id' end
where c.relkind in ('r', 'p')
  and c.relpersistence <> 't'
  and case
    when %(only)s then format('%%I.%%I', n.nspname, c.relname) = any (%(named)s)
    else tenant.attname is not null and (
      'goldleaves_owner'::regrole in (n.nspowner, c.relowner)
      or format('%%I.%%I', n.nspname, c.relname) = any (%(named)s)
    )
  end
order by 1
