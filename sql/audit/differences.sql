-- Whether watched rows are still what the audit log told of them. Who switches triggers off changes a row, and the log tells nothing of it:
-- then the last thing that it told, column by column, is not what there is.

-- p_targets: what rows are called (sql/audit/watched.sql). p_organization_id null: of all chains, the platform's too. p_only_grow: those of
-- which nothing but their creation may ever be told. p_told: those that have always been watched, so that each row must have been told of.
-- expected: what was told; found: what there is.
create or replace function audit.differences(p_targets text[], p_organization_id uuid, p_only_grow text[], p_told text[])
returns table (organization_id uuid, target_type text, target_id text, expected text, found text, detail text)
language plpgsql
stable
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_watch record;
begin
  for v_watch in
    select
      w.arguments ->> 'target' as target,
      t.tgrelid::regclass as table_name,
      coalesce('r.' || quote_ident(w.arguments ->> 'organization'), 'null::uuid') as organization,
      (
        select string_agg(format('to_jsonb(r) ->> %L', k.name), ', ' order by k.n)
        from jsonb_array_elements_text(w.arguments -> 'key') with ordinality as k (name, n)
      ) as key,
      array(
        select jsonb_array_elements_text(w.arguments -> p.part) from unnest(array['hidden', 'quiet', 'personal']) as p (part)
      ) as apart
    from pg_catalog.pg_trigger t
    cross join lateral (select convert_from(substring(t.tgargs for length(t.tgargs) - 1), 'UTF8')::jsonb as arguments) as w
    where t.tgname = 'watch'
      and t.tgparentid = 0
      and t.tgfoid = 'audit.record_change()'::regprocedure
      and w.arguments ->> 'target' = any (p_targets)
    order by 1
  loop
    return query execute format(
      $query$
        with entries as materialized (
          select l.organization_id, l.target_id, l.position, l.action, l.after
          from audit.log l
          where l.target_type = $1
            and ($2 is null or l.organization_id = $2)
        ),
        ends as materialized (
          select e.organization_id, e.target_id, e.position, e.action,
            row_number() over (partition by e.organization_id, e.target_id order by e.position desc) as n
          from entries e
        ),
        told as (
          select distinct on (e.organization_id, e.target_id, m.key) e.organization_id, e.target_id, e.position, m.key, m.value
          from entries e
          cross join lateral jsonb_each(e.after) as m
          order by e.organization_id, e.target_id, m.key, e.position desc
        ),
        stored as materialized (
          select coalesce(%3$s, audit.platform()) as organization_id, array_to_string(array[%1$s], ',') as target_id, to_jsonb(r) as row
          from %2$s r
          where $2 is null or coalesce(%3$s, audit.platform()) = $2
        )
        select t.organization_id, $1, t.target_id, t.value #>> '{}', s.row ->> t.key,
          format('%%s of %%s %%s is not what the audit log (entry %%s) tells', t.key, replace($1, '_', ' '), t.target_id, t.position)
        from told t
        join stored s using (organization_id, target_id)
        where t.key <> all ($3)
          and s.row ? t.key
          and t.value is distinct from s.row -> t.key
        union all
        select e.organization_id, $1, e.target_id, e.action, null,
          format('%%s %%s is gone: the audit log (entry %%s) knows it', replace($1, '_', ' '), e.target_id, e.position)
        from ends e
        where e.n = 1
          and e.action not like '%%.removed'
          -- Prices had another key before they had an id.
          and not ($1 = 'price' and e.target_id like '%%,%%')
          and not exists (select from stored s where s.organization_id = e.organization_id and s.target_id = e.target_id)
        union all
        select e.organization_id, $1, e.target_id, null, e.action,
          format(
            'the audit log (entry %%s) tells that %%s %%s was changed once it was there, and such only grow', e.position,
            replace($1, '_', ' '), e.target_id
          )
        from entries e
        where $1 = any ($4)
          and e.action not like '%%.created'
        union all
        select s.organization_id, $1, s.target_id, null, 'there',
          format('the audit log does not know %%s %%s: it was not made as others are', replace($1, '_', ' '), s.target_id)
        from stored s
        where $1 = any ($5)
          and not exists (
            select from ends e
            where e.organization_id = s.organization_id and e.target_id = s.target_id and e.n = 1 and e.action not like '%%.removed'
          )
      $query$,
      v_watch.key, v_watch.table_name, v_watch.organization
    ) using v_watch.target, p_organization_id, v_watch.apart, p_only_grow, p_told;
  end loop;
end;
$$;

grant execute on function audit.differences(text[], uuid, text[], text[]) to goldleaves_kernel;
