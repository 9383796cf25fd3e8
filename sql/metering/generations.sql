-- The generation: which of the clusters that have held this database is recording now. Each has a system identifier of its own,
-- copies of its files share it. pg_upgrade gives a new one and goes on counting transactions, so a new generation is right there too.

-- Called once a batch or statement by whatever records usage. In a database that was restored, and that `goldleaves migrate` has not
-- seen yet, nothing may be recorded: it would lie below positions that were reached in the old cluster, and never be reported.
create or replace function metering.recording_generation()
returns integer
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_cluster text := nullif(current_setting('goldleaves.system_identifier', true), '');
  v_generation integer;
  v_system_identifier bigint;
begin
  -- Reading it opens a file. A session never leaves its cluster, so it asks once.
  if v_cluster is null then
    select set_config('goldleaves.system_identifier', system_identifier::text, false) into v_cluster from pg_control_system();
  end if;

  select generation, system_identifier into v_generation, v_system_identifier
  from metering.generations
  order by generation desc
  limit 1;

  if v_system_identifier is distinct from v_cluster::bigint then
    raise exception using
      errcode = 'PT503',
      message = 'DATABASE_RESTORED: this database came from another cluster, and records usage once that is known',
      hint = 'Run `goldleaves migrate` on it.';
  end if;
  return v_generation;
end;
$$;

-- Begins a new generation when the cluster is not the one recorded last, and returns it; null when it is. For the migrator alone.
create or replace function metering.begin_generation()
returns integer
language sql
volatile
set search_path = ''
as $$
  insert into metering.generations (generation, system_identifier)
  select coalesce(max(g.generation), 0) + 1, c.system_identifier
  from pg_control_system() c
  left join metering.generations g on true
  group by c.system_identifier
  having (array_agg(g.system_identifier order by g.generation desc))[1] is distinct from c.system_identifier
  returning generation
$$;

grant execute on function metering.recording_generation() to goldleaves_kernel;
