-- Who sends usage again, or for periods that are closed: for operations. Batches in which nothing of the kind was are in no row of
-- metering.repeated_batches, and so in no count here.
create or replace function metering.repeated_events(p_since interval)
returns table (source text, organization_id uuid, accepted bigint, duplicates bigint, conflicts bigint, locked bigint)
language sql
stable
security definer
set search_path = ''
as $$
  select b.source, b.organization_id, sum(b.accepted), sum(b.duplicates), sum(b.conflicts), sum(b.locked)
  from metering.repeated_batches b
  where b.recorded_at >= now() - p_since
  group by b.source, b.organization_id
  order by sum(b.duplicates + b.conflicts + b.locked) desc
$$;

-- Whoever looks later than that looks into the events.
create or replace function metering.forget_repeated_batches()
returns void
language sql
volatile
set search_path = ''
as $$
  delete from metering.repeated_batches where recorded_at < now() - interval '30 days'
$$;

alter function metering.repeated_events(interval) owner to goldleaves_kernel;
grant execute on function metering.repeated_events(interval) to sidecar, monitor;
grant execute on function metering.forget_repeated_batches() to goldleaves_kernel;
