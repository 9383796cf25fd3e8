-- The table %(table)s, its switches, its columns, and its partitions with what is amiss with them.
select
  pg_get_userbyid(c.relowner),
  c.relkind = 'p',
  c.relrowsecurity,
  c.relforcerowsecurity,
  (select i.inhparent::regclass::text from pg_inherits i where i.inhrelid = c.oid and c.relispartition),
  array(select attname::text from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped order by attnum),
  (select count(*) from pg_partition_tree(c.oid) where relid <> c.oid),
  array(
    select part.oid::regclass::text || case
      when not part.relrowsecurity then ' has row security off'
      when not part.relforcerowsecurity then ' does not force row security'
      else ' is granted to ' || (
        select string_agg(distinct case entry.grantee when 0 then 'PUBLIC' else pg_get_userbyid(entry.grantee) end, ', ')
        from aclexplode(part.relacl) as entry
        where entry.grantee <> part.relowner
      )
    end
    from pg_partition_tree(c.oid) as tree
    join pg_class part on part.oid = tree.relid and part.oid <> c.oid
    where not part.relrowsecurity
      or not part.relforcerowsecurity
      or exists (select from aclexplode(part.relacl) as entry where entry.grantee <> part.relowner)
    order by 1
  )
from pg_class c
where c.oid = %(table)s
