-- A batch as it came over the wire: text, which is usually JSON that jsonb can hold. These run as their caller, since text from
-- outside needs nobody's rights until it is read.

-- JSON that jsonb cannot hold (\u0000, half of a surrogate pair, a number beyond numeric) becomes the text that it is.
create or replace function metering.jsonb_or_text(p_json text)
returns jsonb
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
begin
  return p_json::jsonb;
exception when data_exception or program_limit_exceeded then
  return to_jsonb(p_json);
end;
$$;

-- The events of a body, one by one, so that one that jsonb cannot hold does not cost the others. Type json looks into no string, but its
-- operators do: the wrapper {"events": [...], "late": "adjust"} is taken off as text. An event alone becomes a batch of one.
create or replace function metering.split_events(p_body text, out events jsonb, out late text)
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
declare
  v_body text := btrim(p_body, E' \t\r\n');
  v_head text := substring(left(v_body, 1000) from '^\{[ \t\r\n]*(?:"late"[ \t\r\n]*:[ \t\r\n]*(?:"[a-z]*"|null)[ \t\r\n]*,[ \t\r\n]*)?"events"[ \t\r\n]*:');
  v_tail text := substring(right(v_body, 1000) from '(?:,[ \t\r\n]*"late"[ \t\r\n]*:[ \t\r\n]*(?:"[a-z]*"|null)[ \t\r\n]*)?\}$');
begin
  if v_head is not null and v_tail is not null then
    late := substring(v_head || v_tail from '"late"[ \t\r\n]*:[ \t\r\n]*"([a-z]*)"');
    v_body := left(substr(v_body, length(v_head) + 1), -length(v_tail));
  elsif v_body like '{%' then
    perform v_body::json;
    v_body := '[' || v_body || ']';
  end if;
  select coalesce(jsonb_agg(metering.jsonb_or_text(e.event::text) order by e.position), '[]') into events
  from json_array_elements(v_body::json) with ordinality as e (event, position);
end;
$$;

-- The events of a body and what to do with late ones, in the words of metering.ingest_batch(). Raises INVALID_BODY (400), and what
-- Postgres says of text that is no JSON.
create or replace function metering.read_body(p_body text, p_format text, p_late text, out events jsonb, out late text)
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
declare
  v_body jsonb;
begin
  if p_format = 'ndjson' then
    late := metering.late_of_body('[]', p_late);
    begin
      select coalesce(jsonb_agg(l.line::jsonb order by l.number), '[]') into events
      from string_to_table(p_body, E'\n') with ordinality as l (line, number)
      where l.line ~ '[^ \t\r]';
    exception when data_exception or program_limit_exceeded then
      select jsonb_agg(metering.jsonb_or_text(l.line) order by l.number) into events
      from string_to_table(p_body, E'\n') with ordinality as l (line, number)
      where l.line ~ '[^ \t\r]';
    end;
    return;
  end if;

  begin
    v_body := p_body::jsonb;
  exception when data_exception or program_limit_exceeded then
    select s.events, metering.late_of_body(jsonb_build_object('events', '[]'::jsonb, 'late', s.late), p_late) into events, late
    from metering.split_events(p_body) as s;
    return;
  end;
  if p_format = 'cloudevents' then
    events := metering.events_of_body(case when jsonb_typeof(v_body) = 'object' then jsonb_build_array(v_body) else v_body end);
    late := metering.late_of_body('[]', p_late);
  else
    events := metering.events_of_body(v_body);
    late := metering.late_of_body(v_body, p_late);
  end if;
end;
$$;

-- What the sidecar calls: metering.ingest_events(), which says what the parameters are, with the events as text. p_key_id: the API
-- key that they came with. It is looked up here, so that a key counts for nothing from the moment it is revoked. p_format: 'events' (an
-- event, an array of them, or {"events": [...], "late": "adjust"}), 'cloudevents' (one CloudEvent, or an array of them), 'ndjson' (an event a
-- line, blank lines are skipped). p_max_future: how far ahead of the clock a time may be.
create or replace function metering.receive_events(
  p_body text, p_organization_id uuid, p_source text, p_late text, p_key_id uuid default null, p_format text default 'events',
  p_max_future interval default '5 minutes'
)
returns jsonb
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_organization_id uuid := p_organization_id;
  v_body record;
begin
  if p_key_id is not null then
    v_organization_id := tenancy.organization_of_events(p_key_id, p_organization_id);
  end if;
  v_body := metering.read_body(p_body, p_format, p_late);
  return (
    metering.ingest_batch(
      v_body.events, null, array[v_organization_id], array[p_source], array[p_format = 'cloudevents'], array[v_body.late], p_max_future
    )
  )[1];
end;
$$;

-- Whether usage of an organization can be recorded without waiting for who closes one of its periods; then nobody closes one before the
-- transaction ends.
create or replace function metering.can_record_now(p_organization_id uuid)
returns boolean
language sql
volatile
security definer
set search_path = ''
as $$
  select pg_try_advisory_xact_lock_shared(billing.period_lock_class(), billing.period_lock_slot(p_organization_id))
$$;

-- The requests of a group, one after the other, so that one that is malformed, or whose key is not good, costs the others nothing. p_key_ids
-- to p_lates: see metering.receive_group(). errors: of each request null, or [SQLSTATE, message, details, hint].
create or replace function metering.read_one_by_one(
  p_bodies text[], p_organization_ids uuid[], p_key_ids uuid[], p_formats text[], p_lates text[],
  out batches jsonb[], out organization_ids uuid[], out lates text[], out errors jsonb[]
)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_body record;
  v_state text;
  v_message text;
  v_details text;
  v_hint text;
begin
  organization_ids := p_organization_ids;
  lates := p_lates;
  errors := array_fill(null::jsonb, array[cardinality(p_bodies)]);
  for v_request in 1 .. cardinality(p_bodies) loop
    begin
      if p_key_ids[v_request] is not null then
        organization_ids[v_request] := tenancy.organization_of_events(p_key_ids[v_request], p_organization_ids[v_request]);
      end if;
      v_body := metering.read_body(p_bodies[v_request], p_formats[v_request], p_lates[v_request]);
      if organization_ids[v_request] is not null and not metering.can_record_now(organization_ids[v_request]) then
        raise lock_not_available using message = 'a period of the organization is being closed';
      end if;
      batches[v_request] := v_body.events;
      lates[v_request] := v_body.late;
    exception when data_exception or program_limit_exceeded or lock_not_available or sqlstate 'PT400' or sqlstate 'PT401' or sqlstate 'PT403' then
      get stacked diagnostics
        v_state = returned_sqlstate, v_message = message_text, v_details = pg_exception_detail, v_hint = pg_exception_hint;
      batches[v_request] := '[]';
      errors[v_request] := jsonb_build_array(v_state, v_message, nullif(v_details, ''), nullif(v_hint, ''));
    end;
  end loop;
end;
$$;

-- The same, all at once, when nothing is wrong with any of them, as usual; else null. One statement for all costs a third of one for each.
create or replace function metering.read_together(
  p_bodies text[], p_organization_ids uuid[], p_key_ids uuid[], p_lates text[],
  out batches jsonb[], out organization_ids uuid[], out lates text[]
)
language plpgsql
volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
begin
  organization_ids := p_organization_ids;
  if exists (select from unnest(p_key_ids) as k where k is not null) then
    select array_agg(coalesce(k.organization_id, r.organization_id) order by r.request) into organization_ids
    from unnest(p_key_ids, p_organization_ids) with ordinality as r (key_id, organization_id, request)
    left join (
      select u.key_id, u.named_id, tenancy.organization_of_events(u.key_id, u.named_id) as organization_id
      from (select distinct key_id, named_id from unnest(p_key_ids, p_organization_ids) as n (key_id, named_id) where key_id is not null) as u
    ) as k on k.key_id = r.key_id and k.named_id is not distinct from r.organization_id;
  end if;
  if exists (
    select
    from (select distinct o from unnest(organization_ids) as o where o is not null) as d (organization_id)
    where not metering.can_record_now(d.organization_id)
  ) then
    batches := null;
    return;
  end if;

  select array_agg(metering.events_in(b.body) order by b.request), array_agg(metering.late_in(b.body, b.late) order by b.request)
  into batches, lates
  from (
    select r.body::jsonb as body, r.late, r.request
    from unnest(p_bodies, p_lates) with ordinality as r (body, late, request)
    offset 0
  ) as b;
  if exists (select from unnest(batches) as b where jsonb_typeof(b) is distinct from 'array') or array_position(lates, null) is not null then
    batches := null;
  end if;
exception when data_exception or program_limit_exceeded or sqlstate 'PT400' or sqlstate 'PT401' or sqlstate 'PT403' then
  batches := null;
end;
$$;

-- A group of small requests of POST /v1/events in one transaction, each answered as if it had come alone: the arrays have an element a
-- request, and so has the answer, in that order. A request that is refused as a whole (malformed, or its key is not good) has
-- error_state (an SQLSTATE), error_message, error_details and error_hint instead of an outcome, and costs the others nothing. So has one for an
-- organization of which a period is being closed: lock_not_available, to be sent by itself, so that the others need not wait.
-- They are one batch: the lock, the keys and the facts are taken and written once for all of them.
create or replace function metering.receive_group(
  p_bodies text[], p_organization_ids uuid[], p_key_ids uuid[], p_formats text[], p_lates text[], p_max_future interval default '5 minutes'
)
returns table ("position" integer, outcome jsonb, error_state text, error_message text, error_details text, error_hint text)
language plpgsql
volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
declare
  v_batches jsonb[];
  v_organization_ids uuid[];
  v_lates text[];
  v_errors jsonb[];
  v_events jsonb;
  v_requests integer[];
  v_outcomes jsonb[];
begin
  if 'events' = all (p_formats) then
    select g.batches, g.organization_ids, g.lates into v_batches, v_organization_ids, v_lates
    from metering.read_together(p_bodies, p_organization_ids, p_key_ids, p_lates) as g;
  end if;
  if v_batches is null then
    select g.batches, g.organization_ids, g.lates, g.errors into v_batches, v_organization_ids, v_lates, v_errors
    from metering.read_one_by_one(p_bodies, p_organization_ids, p_key_ids, p_formats, p_lates) as g;
  end if;

  select coalesce(jsonb_agg(e.event order by b.request, e.place), '[]'), coalesce(array_agg(b.request::integer order by b.request, e.place), '{}')
  into v_events, v_requests
  from unnest(v_batches) with ordinality as b (events, request)
  cross join jsonb_array_elements(b.events) with ordinality as e (event, place);

  v_outcomes := metering.ingest_batch(
    v_events, v_requests, v_organization_ids, array_fill('api'::text, array[cardinality(p_bodies)]),
    array(select f = 'cloudevents' from unnest(p_formats) with ordinality as p (f, request) order by p.request), v_lates, p_max_future
  );

  return query
    select
      r.request::integer, case when v_errors[r.request] is null then r.outcome end,
      v_errors[r.request] ->> 0, v_errors[r.request] ->> 1, v_errors[r.request] ->> 2, v_errors[r.request] ->> 3
    from unnest(v_outcomes) with ordinality as r (outcome, request)
    order by r.request;
end;
$$;

alter function metering.can_record_now(uuid) owner to goldleaves_kernel;
grant execute on function metering.can_record_now(uuid), metering.jsonb_or_text(text), metering.split_events(text), metering.read_body(text, text, text),
  metering.receive_events(text, uuid, text, text, uuid, text, interval),
  metering.read_one_by_one(text[], uuid[], uuid[], text[], text[]), metering.read_together(text[], uuid[], uuid[], text[]),
  metering.receive_group(text[], uuid[], uuid[], text[], text[], interval) to sidecar;
