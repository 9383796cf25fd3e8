-- A role that serves requests is granted a sequence.
-- Why: all organizations draw their numbers from it, so each sees how many the others make, and who may update it sets it back. Columns
-- that are generated as identity need no grant.
-- Level: warning
select 'pg_class'::regclass as class, c.oid as id, c.oid::regclass::text as object,
  format('%s may use %s', string_agg(distinct r.name, ', '), c.oid::regclass) as what,
  format(E'revoke all on sequence %s from %s cascade; -- once no default needs it: ops.new_id() tells nothing\n'
    '-- or, when they may know: comment on sequence %1$s is %3$L;', c.oid::regclass, string_agg(distinct r.name, ', '),
    'goldleaves lint sequence_granted: <why>') as mend
from pg_class c
cross join lateral aclexplode(c.relacl) as a
join request_roles r on r.oid = a.grantee
where c.relkind = 'S' and a.grantee <> c.relowner
group by c.oid
