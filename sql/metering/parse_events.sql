-- Reading a batch: JSON in, checked rows out, in the order in which their keys are inserted.

-- RFC 3339 to timestamptz; null where it is none. A cast would raise and cost the good events of the batch. The helpers here have no
-- `set search_path`, so that they are inlined: a call for each event would double the cost of reading it. For the same reason none
-- is immutable that calls what is only stable, such as convert_to().
create or replace function metering.parse_time(p_text text)
returns timestamptz
language sql
stable
parallel safe
as $$
  select case
    when p_text !~ '^[0-9][0-9][0-9][0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-](0[0-9]|1[0-4]):[0-5][0-9])$'
      or p_text like '0000%' or pg_catalog.length(p_text) > 40 then null
    when pg_catalog.substr(p_text, 9, 2) > '28'
      and pg_catalog.substr(p_text, 9, 2)::integer > extract(
        day from pg_catalog.make_date(pg_catalog.substr(p_text, 1, 4)::integer, pg_catalog.substr(p_text, 6, 2)::integer, 1)
          + interval '1 month - 1 day'
      ) then null
    else p_text::timestamptz
  end
$$;

-- The first 128 bits of SHA-256 over length-prefixed parts: 'a' + 'bc' and 'ab' + 'c' stay apart.
create or replace function metering.event_key(p_organization_id uuid, p_source text, p_id text)
returns uuid
language sql
stable
parallel safe
as $$
  select pg_catalog.encode(
    pg_catalog.substring(
      pg_catalog.sha256(
        pg_catalog.convert_to(
          p_organization_id::text
            || pg_catalog.octet_length(p_source)::text || ':' || p_source
            || pg_catalog.octet_length(p_id)::text || ':' || p_id,
          'UTF8'
        )
      ),
      1, 16
    ),
    'hex'
  )::uuid
$$;

-- What an event says, apart from when: the same key with another one of these is a conflict.
create or replace function metering.event_fact(p_event_name text, p_quantity numeric, p_resource_id text)
returns uuid
language sql
stable
parallel safe
as $$
  select pg_catalog.encode(
    pg_catalog.substring(
      pg_catalog.sha256(
        pg_catalog.convert_to(
          p_event_name || ' ' || pg_catalog.trim_scale(p_quantity)::text || ' ' || coalesce('=' || p_resource_id, ''), 'UTF8'
        )
      ),
      1, 16
    ),
    'hex'
  )::uuid
$$;

-- Oldest time an event may have. Anything else in the past is welcome while its period is open.
create or replace function metering.oldest_event_time()
returns timestamptz
language sql
stable
parallel safe
as $$ select pg_catalog.now() - interval '5 years' $$;

-- Where an event happened, for people: {"type": "project", "project": "Apollo", "workspace": "Legal"}. Nothing (null) is fine.
create or replace function metering.is_context(p_context jsonb)
returns boolean
language sql
immutable
parallel safe
as $$
  select case coalesce(pg_catalog.jsonb_typeof(p_context), 'null')
    when 'null' then true
    when 'object' then coalesce(p_context ->> 'type' in ('project', 'workspace', 'admin', 'other'), false) and (
      select pg_catalog.count(*) <= 8
        and pg_catalog.bool_and(pg_catalog.jsonb_typeof(m.value) = 'string' and pg_catalog.length(m.value #>> '{}') <= 200)
        and pg_catalog.bool_and(pg_catalog.length(m.key) <= 200)
      from pg_catalog.jsonb_each(p_context) as m
    )
    else false
  end
$$;

-- An event of a batch belongs to a request, and what the request says for all of its events is in the arrays, at that place.
-- p_organization_ids: X-Organization-ID, or null when each event names its own. p_are_cloud_events: the events were CloudEvents and bring
-- a source, and maybe a problem (see metering.read_cloud_events()). p_lates: 'reject', 'adjust' (an event of a finalized period is
-- recorded now), or 'repair': usage that has happened and cannot be refused, for which also a time that no sane clock gives is replaced
-- by now, and kept in dimensions.sent_time.
--
-- Most times are written as Postgres would write them, which is cheaper to see than what else RFC 3339 allows: they are cast, and
-- compared with themselves as text. When one cannot even be cast, the batch is read again, carefully.
create or replace function metering.parse_batch(
  p_events jsonb, p_requests integer[], p_organization_ids uuid[], p_sources text[], p_are_cloud_events boolean[], p_lates text[],
  p_max_future interval
)
returns metering.parsed_event[]
language plpgsql
stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set timezone = 'UTC'
as $$
declare
  v_parsed metering.parsed_event[];
  v_latest timestamptz := statement_timestamp() + p_max_future;
  v_oldest timestamptz := metering.oldest_event_time();
  v_unknown uuid[] := array(
    select i.organization_id
    from (select distinct u from unnest(p_organization_ids) as u) as i (organization_id)
    where not exists (select from tenancy.organizations o where o.id = i.organization_id)
      and i.organization_id is not null
  );
begin
  for v_careful in 0 .. 1 loop
    begin
      select array_agg(
        row(
          c.position,
          c.organization_id,
          case when c.problem is null then metering.event_key(c.organization_id, c.source, c.id) end,
          case when c.problem is null then metering.event_fact(c.event_name, c.quantity, c.event ->> 'resource_id') end,
          c.id,
          c.event_name,
          c.quantity,
          c.event ->> 'unit',
          case when c.is_insane then null else c.occurred_at end,
          c.event ->> 'user_id',
          c.event ->> 'resource_id',
          c.event ->> 'request_id',
          case
            when c.is_insane
              then coalesce(nullif(c.dimensions, 'null'), '{}') || jsonb_build_object('sent_time', c.event -> 'time')
            when jsonb_typeof(c.dimensions) = 'object' then c.dimensions
            else '{}'
          end,
          c.problem,
          c.request,
          c.source,
          c.event ->> 'workspace_id',
          nullif(c.event -> 'context', 'null'),
          c.late <> 'reject'
        )::metering.parsed_event
      ) into v_parsed
      from (
        select
          s.*,
          case
            when jsonb_typeof(s.event) <> 'object'
              then 'an event is a JSON object, without \u0000, half of a surrogate pair or a number that Postgres cannot hold'
            when s.problem_before is not null then s.problem_before
            when s.id is null or length(s.id) not between 1 and 256 then 'id needs a string of 1 to 256 characters'
            when s.event_name is null or length(s.event_name) not between 1 and 128 or s.event_name ~ '[^A-Za-z0-9_.:-]'
              then case when s.is_cloud_event then 'type' else 'event' end || ' needs a name of 1 to 128 letters, digits and _ . : -'
            when s.quantity is null then 'quantity needs a number'
            when s.quantity < 0 and s.event_name not in (
              select m.event_name from metering.meters m where m.allow_negative and m.deleted_at is null and m.event_name is not null
            ) then 'quantity is negative, and no meter of this event allows that'
            when abs(s.quantity) >= 1e18 or scale(s.quantity) > 18 then 'quantity needs to be below 1e18, with at most 18 decimals'
            when s.named_organization is not null and s.organization_id is null and s.request_organization is not null
              then s.organization_member || ' is not the organization of X-Organization-ID or of the API key'
            when s.named_organization is null and s.organization_id is null
              then s.organization_member || ' is missing: name it here or in X-Organization-ID'
            when case
              when s.organization_id is null then true
              when s.request_organization is null then not exists (select from tenancy.organizations o where o.id = s.organization_id)
              else s.organization_id = any (v_unknown)
            end then s.organization_member || ': there is no such organization'
            when s.occurred_at is null and coalesce(jsonb_typeof(s.event -> 'time'), 'null') <> 'null'
              then 'time needs RFC 3339 with an offset, such as 2026-01-31T09:30:00Z'
            when s.is_future and s.late <> 'repair' then 'time is in the future'
            when s.is_ancient and s.late <> 'repair' then 'time is more than five years ago'
            when coalesce(jsonb_typeof(s.dimensions), 'null') not in ('object', 'null') then 'dimensions needs an object'
            when pg_column_size(s.dimensions) > 8192 or octet_length(s.dimensions::text) > 16384
              then 'dimensions are larger than 8 kB'
            when exists (
              select from unnest(array['unit', 'user_id', 'workspace_id', 'resource_id', 'request_id']) as f (name)
              where s.event ? f.name and (jsonb_typeof(s.event -> f.name) not in ('string', 'null') or length(s.event ->> f.name) > 256)
            ) then 'unit, user_id, workspace_id, resource_id and request_id need strings of at most 256 characters'
            when coalesce(jsonb_typeof(s.event -> 'context'), 'null') <> 'null' and not metering.is_context(s.event -> 'context')
              then 'context needs an object: type (project, workspace, admin or other) and at most 7 names of at most 200 characters'
            when s.late not in ('reject', 'adjust') and p_lates[s.request] <> 'repair'
              then 'late needs to be "reject" or "adjust"'
          end as problem,
          s.is_future or s.is_ancient as is_insane
        from (
          select
            t.*,
            t.occurred_at > v_latest as is_future,
            t.occurred_at < v_oldest as is_ancient,
            case when t.is_cloud_event then 'subject' else 'organization_id' end as organization_member
          from (
            select
              r.*,
              case
                when r.time = r.written_time || 'Z' or r.time = r.written_time || '+00:00' then r.cast_time
                else metering.parse_time(r.time)
              end as occurred_at,
              case
                when r.request_organization is null then case when tenancy.is_uuid(r.named_organization) then r.named_organization::uuid end
                when r.named_organization is null or lower(r.named_organization) = r.request_organization::text then r.request_organization
              end as organization_id
            from (
              select b.*, replace(left(b.cast_time::text, -3), ' ', 'T') as written_time
              from (
                select
                  e.position,
                  e.request,
                  e.event,
                  p_organization_ids[e.request] as request_organization,
                  e.is_cloud_event,
                  case when e.is_cloud_event then coalesce(left(e.event ->> 'source', 256), '') else p_sources[e.request] end as source,
                  case when e.is_cloud_event then e.event ->> 'problem' end as problem_before,
                  case p_lates[e.request]
                    when 'repair' then 'repair'
                    else coalesce(e.event ->> 'late', p_lates[e.request])
                  end as late,
                  case when jsonb_typeof(e.event -> 'id') = 'string' then e.event ->> 'id' end as id,
                  case when jsonb_typeof(e.event -> 'event') = 'string' then e.event ->> 'event' end as event_name,
                  case when jsonb_typeof(e.event -> 'quantity') = 'number' then (e.event -> 'quantity')::numeric end as quantity,
                  e.event -> 'dimensions' as dimensions,
                  e.event ->> 'organization_id' as named_organization,
                  e.event ->> 'time' as time,
                  case when v_careful = 0 then (e.event ->> 'time')::timestamptz end as cast_time
                from (
                  select
                    (o.number - 1)::integer as position,
                    o.event,
                    case when p_requests is null then 1 else p_requests[o.number] end as request,
                    p_are_cloud_events[case when p_requests is null then 1 else p_requests[o.number] end] as is_cloud_event
                  from jsonb_array_elements(p_events) with ordinality as o (event, number)
                  offset 0
                ) as e
                offset 0
              ) as b
              offset 0
            ) as r
            offset 0
          ) as t
          offset 0
        ) as s
        offset 0
      ) as c;
      return v_parsed;
    exception when data_exception then
      if v_careful = 1 then
        raise;
      end if;
    end;
  end loop;
end;
$$;

-- The events of one request.
create or replace function metering.parse_events(
  p_events jsonb, p_organization_id uuid, p_source text, p_late text, p_max_future interval default '5 minutes'
)
returns metering.parsed_event[]
language sql
stable
set search_path = ''
as $$
  select metering.parse_batch(p_events, null, array[p_organization_id], array[p_source], array[false], array[p_late], p_max_future)
$$;

grant execute on function metering.parse_time(text), metering.event_key(uuid, text, text), metering.event_fact(text, numeric, text),
  metering.oldest_event_time(), metering.is_context(jsonb),
  metering.parse_batch(jsonb, integer[], uuid[], text[], boolean[], text[], interval),
  metering.parse_events(jsonb, uuid, text, text, interval) to goldleaves_kernel;
