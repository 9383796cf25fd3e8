-- A policy is for PUBLIC.
-- Why: it counts for every role there is and will be, also for one that is made tomorrow for something else.
-- Level: error
select 'pg_policy'::regclass as class, p.oid as id, p.address as object,
  format('%s is for every role', p.name) as what,
  format('alter policy %s to member;', p.address) as mend
from policies p
where 0 = any (p.roles)
