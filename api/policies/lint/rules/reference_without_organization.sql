-- A foreign key of a table with rows of tenants does not start with the organization.
-- Why: a row could refer to another tenant's, and whether that works tells that it exists. The check of a foreign key asks no policy.
-- Level: error
select 'pg_constraint'::regclass as class, k.oid as id, format('%I on %s', k.conname, k.conrelid::regclass) as object,
  format('%I refers to %s without the organization: %s', k.conname, k.confrelid::regclass, pg_get_constraintdef(k.oid)) as what,
  case
    when t.tenant_column = 'organization_id' and referred.tenant_column = 'organization_id' then
      format('alter table %s drop constraint %I, add %s; -- %s needs a unique key of these columns', t.name, k.conname,
        regexp_replace(pg_get_constraintdef(k.oid), '\(([^()]*\)[^()]*)\(', '(organization_id, \1(organization_id, '), k.confrelid::regclass)
    else
      format(
        E'alter table %s drop constraint %I;\n-- or, when one tenant learns nothing of another by it: comment on constraint %2$I on %1$s is %3$L;',
        k.conrelid::regclass, k.conname, 'goldleaves lint reference_without_organization: <why not>')
  end as mend
from pg_constraint k
left join tenant_tables t on t.oid = k.conrelid
left join tenant_tables referred on referred.oid = k.confrelid
where k.contype = 'f' and k.conparentid = 0
  and case
    -- Tenants' rows refer by their organization to everything, others to tenants' rows by that of the row.
    when t.oid is not null then k.conkey[1] <> t.tenant_number or t.tenant_column = 'id'
    else referred.tenant_number <> all (k.confkey)
  end
