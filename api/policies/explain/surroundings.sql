-- Triggers of the table %(table)s, then the views that show it, directly or through each other, a line each.
with recursive shown (id) as (
  select %(table)s::oid
  union
  select rule.ev_class
  from shown
  join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = shown.id and d.classid = 'pg_rewrite'::regclass
  join pg_rewrite rule on rule.oid = d.objid
)
select 'trigger', t.tgname, t.tgfoid::regproc::text || '()', t.tgenabled = 'D',
  case t.tgtype & 66 when 2 then 'before' when 64 then 'instead of' else 'after' end
  || ' ' || array_to_string(array_remove(array[
    case when t.tgtype & 4 > 0 then 'insert' end,
    case when t.tgtype & 16 > 0 then 'update' end,
    case when t.tgtype & 8 > 0 then 'delete' end,
    case when t.tgtype & 32 > 0 then 'truncate' end
  ], null), ', ')
  || case when t.tgtype & 1 > 0 then ', each row' else ', each statement' end
from pg_trigger t
where t.tgrelid = %(table)s and not t.tgisinternal
union all
select case v.relkind when 'm' then 'materialized view' else 'view' end, v.oid::regclass::text, pg_get_userbyid(v.relowner),
  v.relkind = 'm' or not coalesce(
    (select option_value::boolean from pg_options_to_table(v.reloptions) where option_name = 'security_invoker'), false
  ),
  null
from shown
join pg_class v on v.oid = shown.id and v.relkind in ('v', 'm')
order by 1, 2
