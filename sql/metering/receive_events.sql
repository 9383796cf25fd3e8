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
-- key that they came with. It is looked up here, so that a key counts for nothing from the moment it is revoked.
create or replace function metering.receive_events(
  p_body text, p_organization_id uuid, p_source text, p_late text, p_key_id uuid default null
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

grant execute on function metering.jsonb_or_text(text), metering.split_events(text),
  metering.receive_events(text, uuid, text, text, uuid) to sidecar;
