-- Something that is exposed has no comment.
-- Why: the comment is its documentation: in /openapi.json, in /docs and in the types that frontends generate.
-- Level: warning
select o.class, o.id, o.object, format('%s has no comment', o.object) as what,
  format('comment on %s is %L;', o.object, 'What a frontend developer has to know of it') as mend
from (
  select 'pg_class'::regclass as class, r.oid as id, format('view %s', r.name) as object
  from relations r
  where r.schema = to_regnamespace('api') and r.kind = 'v' and obj_description(r.oid, 'pg_class') is null
  union all
  select 'pg_class'::regclass, r.oid, format('column %s.%I', r.name, a.attname)
  from relations r
  join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
  where r.schema = to_regnamespace('api') and r.kind = 'v' and col_description(r.oid, a.attnum) is null
  union all
  select 'pg_proc'::regclass, f.oid, format('%s %s', case f.kind when 'p' then 'procedure' else 'function' end, f.name)
  from functions f
  where f.schema = to_regnamespace('api') and obj_description(f.oid, 'pg_proc') is null
) as o
