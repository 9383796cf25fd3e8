-- Tables of tenants, and the views of the API, and whether %(role)s may read them. A table of a tenant has organization_id, or
-- row security. A partition is reached through its parent, unless somebody granted it.
with relation as (
  select n.nspname, c.relname, c.relkind, c.oid, k.attname, c.relispartition,
    has_schema_privilege(%(role)s, n.oid, 'usage')
      and (has_table_privilege(%(role)s, c.oid, 'select') or has_any_column_privilege(%(role)s, c.oid, 'select')) as may_read,
    k.attnum is not null and has_column_privilege(%(role)s, c.oid, k.attnum, 'select') as may_read_tenant
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_attribute k on k.attrelid = c.oid and k.attnum > 0 and not k.attisdropped
    and k.attname = case
      when n.nspname in ('tenancy', 'api') and c.relname = 'organizations' then 'id'
      when n.nspname = 'api' and c.relname = 'usage_events' then 'tenant_id'
      else 'organization_id'
    end
  where n.nspname !~ '^(pg_|information_schema$)'
    and case
      when c.relkind = 'v' then %(views)s and n.nspname = 'api'
      else c.relkind in ('r', 'p', 'm', 'f') and (k.attnum is not null or c.relrowsecurity)
    end
)
select nspname, relname, relkind = 'v', oid, attname, may_read, may_read_tenant
from relation
where not relispartition or may_read
order by relkind = 'v', nspname, relname
