-- A table has no primary key.
-- Why: its rows cannot be told apart, logical replication cannot update them, and PostgREST cannot address one.
-- Level: warning
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s has no primary key', r.name) as what,
  format('alter table %s %s;', r.name, case
    when t.tenant_column = 'organization_id' then 'add column id uuid not null default ops.new_id(), add primary key (organization_id, id)'
    else 'add column id uuid primary key default ops.new_id()'
  end) as mend
from relations r
left join tenant_tables t on t.oid = r.oid
where r.kind in ('r', 'p') and not r.is_partition
  and not exists (select from pg_index i where i.indrelid = r.oid and i.indisprimary)
