-- Events that could not be accepted are kept, and are for staff to resolve: mended and sent again, or dismissed. A rejected event used up no
-- key, so what is replayed is judged as if it came for the first time.

-- The event, locked, so that of several who resolve it one does. p_organization_id: of X-Organization-ID, where one is named.
create or replace function metering.take_rejected_event(p_id uuid, p_organization_id uuid)
returns metering.rejected_events
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_rejected metering.rejected_events;
begin
  select r.* into v_rejected
  from metering.rejected_events r
  where r.id = p_id
    and (p_organization_id is null or r.organization_id = p_organization_id)
  for update;
  if not found then
    raise exception using
      errcode = 'PT404',
      message = format('REJECTED_EVENT_NOT_FOUND: there is no rejected event %s', p_id),
      hint = 'GET /rejected_events lists them; id is what is asked for here, not the id of the event.';
  end if;
  if v_rejected.resolution is not null then
    raise exception using
      errcode = 'PT409',
      message = format(
        'REJECTED_EVENT_RESOLVED: rejected event %s was %s at %s', p_id, v_rejected.resolution, metering.time_text(v_rejected.resolved_at)
      ),
      hint = 'Nothing needs doing. The audit log says who did it.';
  end if;
  return v_rejected;
end;
$$;

-- p_said: what staff says of it, which stays outside the chain of the audit log, since it may tell of people.
create or replace function metering.resolve_rejected_event(
  p_rejected metering.rejected_events, p_resolution text, p_organization_id uuid, p_after jsonb, p_said jsonb
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  update metering.rejected_events r
  set resolution = p_resolution, resolved_at = clock_timestamp()
  where r.id = p_rejected.id;
  perform audit.append(
    p_organization_id, 'rejected_event.' || p_resolution, 'rejected_event', p_rejected.id::text,
    jsonb_build_object('code', p_rejected.code), p_after, jsonb_build_object('after', jsonb_strip_nulls(p_said))
  );
end;
$$;

-- Whether it is a CloudEvent, which says its source itself.
create or replace function metering.is_cloud_event(p_event jsonb)
returns boolean
language sql
immutable
parallel safe
set search_path = ''
as $$ select jsonb_typeof(p_event) = 'object' and p_event ? 'specversion' $$;

-- p_event: the event as it should have been, or null: as it was sent. Its source stays, and so does its organization, unless that was what
-- was wrong with it. p_late: 'reject', 'adjust', or null: as events of its source are taken. What is refused again stays open and says why.
create or replace function metering.replay_rejected_event(p_organization_id uuid, p_id uuid, p_event jsonb, p_late text)
returns table (outcome text, code text, message text)
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_rejected metering.rejected_events := metering.take_rejected_event(p_id, p_organization_id);
  v_event jsonb := coalesce(p_event, v_rejected.event);
  v_is_cloud_event boolean := metering.is_cloud_event(v_event);
  v_organization_id uuid := (select o.id from tenancy.organizations o where o.id = v_rejected.organization_id);
  -- Null where a CloudEvent named none, or one that is not its to name.
  v_source text := case
    when v_rejected.source = '' or metering.is_cloud_event(v_rejected.event) and v_rejected.source in ('gateway', 'trigger', 'void') then null
    else v_rejected.source
  end;
  v_late text := coalesce(p_late, 'reject');
  v_answer jsonb;
begin
  if v_late not in ('reject', 'adjust') then
    raise exception using errcode = 'PT400', message = 'INVALID_EVENT: late is "reject" or "adjust"';
  end if;
  if v_is_cloud_event and v_event ->> 'source' <> v_source then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_EVENT: this event came from source %s, which stays', v_source),
      hint = 'Send it as a new event, and dismiss this one.';
  end if;
  if v_source in ('gateway', 'trigger') then
    v_late := 'repair';
  end if;

  begin
    v_answer := (
      metering.ingest_batch(
        jsonb_build_array(v_event), null, array[v_organization_id], array[coalesce(v_source, 'api')], array[v_is_cloud_event], array[v_late],
        '5 minutes'
      )
    )[1];
    outcome := case
      when (v_answer ->> 'accepted')::integer = 1 then 'accepted'
      when (v_answer ->> 'duplicates')::integer = 1 then 'duplicate'
    end;
    -- It is here already, and is not kept a second time.
    if outcome is null then
      raise exception using errcode = 'GL001', message = 'undo what was kept of the refusal';
    end if;
  exception when sqlstate 'GL001' then
    outcome := 'rejected';
    select r.code, r.message into code, message
    from jsonb_to_record(((v_answer -> 'conflicts') || (v_answer -> 'rejected')) -> 0) as r (code text, message text);
    update metering.rejected_events r
    set code = replay_rejected_event.code, message = replay_rejected_event.message
    where r.id = p_id;
  end;

  if outcome <> 'rejected' then
    perform metering.resolve_rejected_event(
      v_rejected, 'replayed', coalesce(v_organization_id, metering.organization_of(v_event)),
      jsonb_build_object('outcome', outcome, 'mended', v_event <> v_rejected.event),
      jsonb_build_object('event_id', v_event ->> 'id', 'source', v_rejected.source)
    );
  end if;
  return next;
end;
$$;

-- Which organization an event that was accepted has named.
create or replace function metering.organization_of(p_event jsonb)
returns uuid
language sql
stable
set search_path = ''
as $$
  select case
    when metering.is_cloud_event(p_event) then tenancy.find_organization(p_event ->> 'subject')
    else (p_event ->> 'organization_id')::uuid
  end
$$;

create or replace function metering.dismiss_rejected_event(p_organization_id uuid, p_id uuid, p_reason text)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_rejected metering.rejected_events := metering.take_rejected_event(p_id, p_organization_id);
begin
  if length(p_reason) > 500 then
    raise exception using errcode = 'PT400', message = 'INVALID_EVENT: reason needs to be at most 500 characters';
  end if;
  perform metering.resolve_rejected_event(
    v_rejected, 'dismissed', (select o.id from tenancy.organizations o where o.id = v_rejected.organization_id),
    '{}', jsonb_build_object('reason', p_reason)
  );
end;
$$;

alter function metering.replay_rejected_event(uuid, uuid, jsonb, text) owner to goldleaves_kernel;
alter function metering.dismiss_rejected_event(uuid, uuid, text) owner to goldleaves_kernel;
grant execute on function metering.take_rejected_event(uuid, uuid), metering.is_cloud_event(jsonb), metering.organization_of(jsonb),
  metering.resolve_rejected_event(metering.rejected_events, text, uuid, jsonb, jsonb) to goldleaves_kernel;
grant execute on function metering.replay_rejected_event(uuid, uuid, jsonb, text), metering.dismiss_rejected_event(uuid, uuid, text)
  to platform_admin;
