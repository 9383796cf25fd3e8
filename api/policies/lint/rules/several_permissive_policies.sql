-- A role has several permissive policies for the same command on a table.
-- Why: a row is let in by any of them, so that none can be read alone, and each is evaluated for each row.
-- Level: warning
select 'pg_class'::regclass as class, r.oid as id, r.name as object,
  format('%s may %s %s by any of %s', role.name, verb.word, r.name, string_agg(p.name, ', ' order by p.name)) as what,
  string_agg(format(E'drop policy %s;\n', p.address), '' order by p.name)
    || format('create policy %I on %s for %s to %s%s%s;', 
      (parse_ident(r.name))[2] || '_' || verb.word || '_' || btrim(role.name, '"'), r.name, verb.word, role.name,
      ' using (' || case when verb.letter <> 'a' then string_agg('(' || p.using_text || ')', ' or ' order by p.name) end || ')',
      ' with check (' || case when verb.letter in ('a', 'w') then
        string_agg('(' || coalesce(p.check_text, p.using_text) || ')', ' or ' order by p.name) end || ')'
    ) as mend
from relations r
join policies p on p.relation = r.oid and p.is_permissive
join (values ('r', 'select'), ('a', 'insert'), ('w', 'update'), ('d', 'delete')) as verb (letter, word) on p.command::text in ('*', verb.letter)
join request_roles role on role.oid = any (p.roles)
group by r.oid, r.name, role.name, verb.letter, verb.word
having count(*) > 1
