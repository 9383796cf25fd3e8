-- A policy for UPDATE has no WITH CHECK.
-- Why: what may be changed is not what it may be changed into. The reader cannot see whether a row can be moved to another organization,
-- and a later change of USING changes both.
-- Level: error
select 'pg_policy'::regclass as class, p.oid as id, p.address as object,
  format('%s is for %s and does not say what the new row may be', p.name, case p.command when 'w' then 'update' else 'all commands' end) as what,
  format('alter policy %s with check (%s);', p.address, coalesce(p.using_text, 'false')) as mend
from policies p
where p.command in ('w', '*') and p.check_text is null
