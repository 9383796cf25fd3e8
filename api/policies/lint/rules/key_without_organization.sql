-- A primary key, unique index or exclusion constraint of a table with rows of tenants does not start with the organization.
-- Why: "already exists" then tells one tenant what another has, and the table cannot be distributed by organization.
-- Level: error
select
  case when k.oid is null then 'pg_class'::regclass else 'pg_constraint'::regclass end as class,
  coalesce(k.oid, i.indexrelid) as id,
  coalesce(quote_ident(k.conname) || ' on ' || t.name, i.indexrelid::regclass::text) as object,
  format('%s is unique over all organizations: %s', coalesce(quote_ident(k.conname), i.indexrelid::regclass::text),
    coalesce(pg_get_constraintdef(k.oid), pg_get_indexdef(i.indexrelid))) as what,
  case
    when t.tenant_column = 'id' then
      format(E'%s;\n-- or, when one tenant learns nothing of another by it: comment on %s is %L;',
        coalesce('alter table ' || t.name || ' drop constraint ' || quote_ident(k.conname), 'drop index ' || i.indexrelid::regclass),
        coalesce('constraint ' || quote_ident(k.conname) || ' on ' || t.name, 'index ' || i.indexrelid::regclass),
        'goldleaves lint key_without_organization: <why not>')
    when k.oid is not null then
      format('alter table %s drop constraint %I, add %s;', t.name, k.conname,
        regexp_replace(pg_get_constraintdef(k.oid), '\(', '(' || t.tenant_column || case when i.indisexclusion then ' with =' else '' end || ', '))
    else
      format(E'drop index %s;\n%s;', i.indexrelid::regclass,
        regexp_replace(pg_get_indexdef(i.indexrelid), '\(', '(' || t.tenant_column || ', '))
  end as mend
from pg_index i
join tenant_tables t on t.oid = i.indrelid
left join pg_constraint k on k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x')
where (i.indisunique or i.indisexclusion)
  and (i.indkey[0] <> t.tenant_number or t.tenant_column = 'id')
  -- Those that a partition has of its table are that one's.
  and not exists (select from pg_inherits h where h.inhrelid = i.indexrelid)
