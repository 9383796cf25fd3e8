-- A table or view has a rule.
-- Why: a rule rewrites statements that others send, and what it adds runs as the owner of the table and not as whoever sends the request.
-- Triggers do that without surprises.
-- Level: error
select 'pg_rewrite'::regclass as class, w.oid as id, format('%I on %s', w.rulename, r.name) as object,
  format('%I rewrites what is sent to %s', w.rulename, r.name) as what,
  format('drop rule %I on %s;', w.rulename, r.name) as mend
from pg_rewrite w
join relations r on r.oid = w.ev_class
where not (w.ev_type = '1' and w.rulename = '_RETURN')
