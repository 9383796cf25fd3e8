-- What happens to documents is usage: doc.upload when one arrives, doc.processed each time one becomes processed. Written in
-- the transaction of the change itself, so it is there exactly once, or not at all with it.

create or replace function metering.meter_documents()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_organizations uuid[];
  v_generation integer;
  v_now timestamptz;
begin
  select array_agg(distinct organization_id) into v_organizations from new_rows;
  if v_organizations is null then
    return null;
  end if;

  v_generation := metering.recording_generation();

  -- now() is the start of the transaction, which may lie in a period that has been finalized since; under the lock it cannot.
  perform billing.share_period_locks(v_organizations);
  v_now := clock_timestamp();
  perform metering.ensure_partition((v_now at time zone 'UTC')::date);

  if tg_op = 'INSERT' then
    insert into metering.usage_events (
      organization_id, occurred_at, source, event_name, quantity, unit, user_id, resource_id, request_id, dimensions,
      payer_user_id, recorded_generation
    )
    select n.organization_id, v_now, 'trigger', m.event_name, 1, 'document',
      tenancy.current_user_id()::text, n.id::text, nullif(current_setting('app.request_id', true), ''), metering.request_dimensions(),
      billing.payer(p.billing_user_id, p.billing_start_at, v_now), v_generation
    from new_rows n
    join tenancy.organizations p on p.id = n.organization_id
    cross join lateral (
      select 'doc.upload' as event_name
      union all
      select 'doc.processed' where n.status = 'processed'
    ) as m;
  else
    insert into metering.usage_events (
      organization_id, occurred_at, source, event_name, quantity, unit, user_id, resource_id, request_id, dimensions,
      payer_user_id, recorded_generation
    )
    select n.organization_id, v_now, 'trigger', 'doc.processed', 1, 'document',
      tenancy.current_user_id()::text, n.id::text, nullif(current_setting('app.request_id', true), ''), metering.request_dimensions(),
      billing.payer(p.billing_user_id, p.billing_start_at, v_now), v_generation
    from new_rows n
    join tenancy.organizations p on p.id = n.organization_id
    join old_rows o on o.organization_id = n.organization_id and o.id = n.id
    where n.status = 'processed'
      and o.status <> 'processed';
  end if;
  return null;
end;
$$;

-- Which request made the change, when PostgREST did.
create or replace function metering.request_dimensions()
returns jsonb
language sql
stable
set search_path = ''
as $$
  select case
    when nullif(current_setting('request.path', true), '') is null then '{}'::jsonb
    else jsonb_build_object('endpoint', '/api/v1' || current_setting('request.path', true), 'method', current_setting('request.method', true))
  end
$$;

alter function metering.meter_documents() owner to goldleaves_kernel;
grant execute on function metering.request_dimensions() to goldleaves_kernel;

create or replace trigger meter_insert after insert on app.documents referencing new table as new_rows
  for each statement execute function metering.meter_documents();
create or replace trigger meter_update after update on app.documents referencing old table as old_rows new table as new_rows
  for each statement execute function metering.meter_documents();
