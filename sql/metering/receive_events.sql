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

-- The events of a batch, one by one, so that one that jsonb cannot hold does not cost the others. Type json looks into no string,
-- but its operators do: the wrapper {"events": [...]} is taken off as text.
create or replace function metering.split_events(p_body text)
returns jsonb
language plpgsql
immutable
parallel safe
set search_path = ''
as $$
declare
  v_body text := btrim(p_body, E' \t\r\n');
  v_wrapper text := substring(left(v_body, 1000) from '^\{[ \t\r\n]*"events"[ \t\r\n]*:');
begin
  if v_wrapper is not null and right(v_body, 1) = '}' then
    v_body := left(substr(v_body, length(v_wrapper) + 1), -1);
  end if;
  return (
    select coalesce(jsonb_agg(metering.jsonb_or_text(e.event::text) order by e.position), '[]')
    from json_array_elements(v_body::json) with ordinality as e (event, position)
  );
end;
$$;

-- What the sidecar calls: metering.ingest_events(), which says what the parameters are, with the events as text. p_key_id: the API
-- key that they came with. It is looked up here, so that a key counts for nothing from the moment it is revoked. p_format: 'events' (an
-- array of ours, or {"events": [...], "late": "adjust"}), 'cloudevents' (one CloudEvent, or an array of them), 'ndjson' (one of ours a
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
  v_events jsonb;
begin
  if p_key_id is not null then
    v_organization_id := tenancy.organization_of_events(p_key_id, p_organization_id);
  end if;
  begin
    v_events := p_body::jsonb;
  exception when data_exception or program_limit_exceeded then
    v_events := metering.split_events(p_body);
  end;
  return metering.ingest_events(v_events, v_organization_id, p_source, p_late);
end;
$$;

-- A group of small requests of POST /v1/events in one transaction, each answered as if it had come alone: the arrays have an element a
-- request, and so has the answer, in that order. A request that is refused as a whole (malformed, or its key is not good) has
-- error_state (an SQLSTATE), error_message, error_details and error_hint instead of an outcome, and costs the others nothing.
create or replace function metering.receive_group(
  p_bodies text[], p_organization_ids uuid[], p_key_ids uuid[], p_formats text[], p_lates text[], p_max_future interval default '5 minutes'
)
returns table ("position" integer, outcome jsonb, error_state text, error_message text, error_details text, error_hint text)
language plpgsql
volatile
set search_path = ''
as $$
begin
  for v_request in 1 .. cardinality(p_bodies) loop
    position := v_request;
    outcome := null;
    error_state := null;
    error_message := null;
    error_details := null;
    error_hint := null;
    begin
      outcome := metering.receive_events(
        p_bodies[v_request], p_organization_ids[v_request], 'api', p_lates[v_request], p_key_ids[v_request], p_formats[v_request],
        p_max_future
      );
    exception when data_exception or program_limit_exceeded or sqlstate 'PT400' or sqlstate 'PT401' or sqlstate 'PT403' then
      get stacked diagnostics
        error_state = returned_sqlstate, error_message = message_text, error_details = pg_exception_detail, error_hint = pg_exception_hint;
    end;
    return next;
  end loop;
end;
$$;

grant execute on function metering.jsonb_or_text(text), metering.split_events(text),
  metering.receive_events(text, uuid, text, text, uuid, text, interval),
  metering.receive_group(text[], uuid[], uuid[], text[], text[], interval) to sidecar;
