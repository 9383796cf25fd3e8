-- Which migrations this database has, for the sidecar's /health.
create or replace function ops.health()
returns jsonb
language sql
stable
security definer
set search_path = ''
as $$
  select jsonb_build_object(
    'version', max(m.migration_id),
    'applied', coalesce(jsonb_agg(m.migration_id order by m.migration_id), '[]')
  )
  from yoyo._yoyo_migration m
$$;

alter function ops.health() owner to goldleaves_kernel;
grant execute on function ops.health() to sidecar;
