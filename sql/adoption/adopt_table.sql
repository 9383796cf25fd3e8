-- Adopting a table: what has rows already becomes a tenants' table, with organization_id in every key, forced row security, policies,
-- grants and triggers. All or nothing, in the transaction of the caller, who is goldleaves_migrator or a superuser: nobody else may
-- execute it. What it did comes back as statements, each with the file in which the next environment finds it.

-- Row security hides rows also from the owner who is to count them.
create or replace function tenancy.see_all_rows(p_tables regclass[])
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_table regclass;
begin
  foreach v_table in array p_tables loop
    if row_security_active(v_table) then
      execute format('alter table %s no force row level security', v_table);
    end if;
  end loop;
end;
$$;

-- All locks before anything is changed, those of tenancy first and then by name, as requests take them (docs/decisions/0006).
create or replace function tenancy.lock_for_adoption(p_tables regclass[])
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_table text;
begin
  lock table tenancy.organizations in share row exclusive mode;
  for v_table in select distinct t::text from unnest(p_tables) as t order by 1 loop
    execute format('lock table %s in access exclusive mode', v_table);
  end loop;
exception
  when lock_not_available then
    raise exception using
      errcode = 'lock_not_available',
      message = format('%s is in use, and adopting it does not wait: whoever asks for it next would wait, too', coalesce(v_table, 'tenancy.organizations')),
      hint = 'Nothing was changed. Try again; goldleaves adopt does so by itself.';
end;
$$;

create or replace function tenancy.refuse_adoption(p_obstacles text[])
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format(
      'ADOPTION_BLOCKED: %s', case cardinality(p_obstacles) when 1 then 'one thing is in the way' else cardinality(p_obstacles) || ' things are in the way' end
    ),
    detail = array_to_string(p_obstacles, E'\n'),
    hint = 'Nothing was changed. Do what each line says, then adopt again.';
end;
$$;

create or replace function tenancy.run_steps(p_steps jsonb)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_statement text;
begin
  for v_statement in select s ->> 'statement' from jsonb_array_elements(p_steps) as s loop
    execute v_statement;
  end loop;
  perform pg_notify('pgrst', 'reload schema');
end;
$$;

-- Tables that refer to each other are adopted together. p_organization_id gets the rows that are there, where they do not say
-- themselves whose they are.
create or replace function tenancy.adopt_tables(p_tables regclass[], p_organization_id uuid default null, p_dry_run boolean default false)
returns table (belongs_in text, statement text, undo text, note text)
language plpgsql
volatile
set search_path = ''
set lock_timeout = '500ms'
as $$
declare
  v_tables regclass[] := array(select distinct t from unnest(p_tables) as t where t is not null order by t);
  v_involved regclass[];
  v_obstacles text[];
  v_steps jsonb;
begin
  v_obstacles := array(
    select format('%s %s: %s', t.id, o.problem, o.remedy) from (select unnest(v_tables) as id) t, tenancy.table_obstacles(t.id) o order by 1
  );
  if cardinality(v_tables) = 0 then
    v_obstacles := array['no table was named: name one'];
  end if;
  if p_organization_id is not null and not exists (select from tenancy.organizations o where o.id = p_organization_id) then
    v_obstacles := v_obstacles || format('there is no organization %s: name one that exists', p_organization_id);
  end if;
  if cardinality(v_obstacles) > 0 then
    perform tenancy.refuse_adoption(v_obstacles);
  end if;

  v_involved := v_tables || array(
    select unnest(array[f.from_table, f.to_table]) from tenancy.foreign_keys_to_change(v_tables) f where f.new_definition is not null
  );
  if not p_dry_run and exists (select from tenancy.adoption_steps(v_tables, p_organization_id)) then
    perform tenancy.lock_for_adoption(v_involved);
  end if;
  v_steps := (select coalesce(jsonb_agg(to_jsonb(s)), '[]') from tenancy.adoption_steps(v_tables, p_organization_id) s);

  begin
    if v_steps <> '[]' then
      perform tenancy.see_all_rows(v_involved);
    end if;
    v_obstacles := array(
      select format('%s %s: %s', o.subject, o.problem, o.remedy)
      from (
        select t.id as subject, d.problem, d.remedy from (select unnest(v_tables) as id) t, tenancy.dependent_obstacles(t.id) d
        union all
        select * from tenancy.key_obstacles(v_tables)
        union all
        select * from tenancy.row_obstacles(case when v_steps <> '[]' then v_tables else '{}' end, p_organization_id)
      ) as o
      order by 1
    );
    if cardinality(v_obstacles) > 0 then
      perform tenancy.refuse_adoption(v_obstacles);
    end if;
    if p_dry_run or v_steps = '[]' then
      raise exception using errcode = 'GLDRY'; -- row security is as it was before we looked
    end if;
    perform tenancy.run_steps(v_steps);
  exception
    when sqlstate 'GLDRY' then
      null;
  end;

  if v_steps = '[]' then
    raise notice 'nothing to do: % % tenants'' rows already', array_to_string(v_tables, ', '),
      case cardinality(v_tables) when 1 then 'holds' else 'hold' end;
  elsif p_dry_run then
    raise notice 'a dry run: nothing was changed';
  end if;
  return query select s.belongs_in, s.statement, s.undo, s.note
    from jsonb_to_recordset(v_steps) as s (belongs_in text, statement text, undo text, note text);
end;
$$;

create or replace function tenancy.adopt_table(p_table regclass, p_organization_id uuid default null, p_dry_run boolean default false)
returns table (belongs_in text, statement text, undo text, note text)
language sql
volatile
set search_path = ''
as $$ select * from tenancy.adopt_tables(array[p_table], p_organization_id, p_dry_run) $$;
