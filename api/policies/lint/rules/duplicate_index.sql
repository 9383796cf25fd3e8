-- Two indexes of a table are the same.
-- Why: each write pays for both, and no read needs the second.
-- Level: warning
select 'pg_class'::regclass as class, i.indexrelid as id, i.indexrelid::regclass::text as object,
  format('%s is the same as %s', i.indexrelid::regclass, other.indexrelid::regclass) as what,
  format('drop index %s;', i.indexrelid::regclass) as mend
from pg_index i
join relations r on r.oid = i.indrelid
join pg_class c on c.oid = i.indexrelid
join pg_index other on other.indrelid = i.indrelid and other.indexrelid <> i.indexrelid
join pg_class other_class on other_class.oid = other.indexrelid
where (i.indkey::text, i.indclass::text, i.indcollation::text, i.indoption::text, c.relam, i.indnkeyatts)
    = (other.indkey::text, other.indclass::text, other.indcollation::text, other.indoption::text, other_class.relam, other.indnkeyatts)
  and pg_get_expr(i.indexprs, i.indrelid) is not distinct from pg_get_expr(other.indexprs, other.indrelid)
  and pg_get_expr(i.indpred, i.indrelid) is not distinct from pg_get_expr(other.indpred, other.indrelid)
  and other.indisvalid
  -- The one that goes: no constraint, nothing that a foreign key uses, and of two such the younger.
  and (not i.indisunique or other.indisunique)
  and not exists (select from pg_constraint k where k.conindid = i.indexrelid)
  and not exists (select from pg_inherits p where p.inhrelid = i.indexrelid)
  and (
    exists (select from pg_constraint k where k.conindid = other.indexrelid)
    or (i.indisunique, -i.indexrelid::bigint) < (other.indisunique, -other.indexrelid::bigint)
  )
