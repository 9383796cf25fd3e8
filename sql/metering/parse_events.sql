-- Reading a batch: JSON in, checked rows out, in the order in which their keys are inserted.

-- RFC 3339 to timestamptz; null where it is none. A cast would raise and cost the good events of the batch. The four helpers here
-- have no `set search_path`, so that they are inlined: a call for each event would double the cost of reading it.
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
immutable
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
immutable
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

-- p_organization_id: of the whole batch (X-Organization-ID), or null when each event names its own. p_late 'adjust' is for usage
-- that has happened and cannot be refused: a time that no sane clock gives is replaced by now, and kept in dimensions.sent_time.
create or replace function metering.parse_events(p_events jsonb, p_organization_id uuid, p_source text, p_late text)
returns metering.parsed_event[]
language sql
stable
set search_path = ''
as $$
  with raw as materialized (
    select
      (e.position - 1)::integer as position,
      e.event,
      jsonb_typeof(e.event) = 'object' as is_object,
      case when jsonb_typeof(e.event -> 'id') = 'string' then e.event ->> 'id' end as id,
      case when jsonb_typeof(e.event -> 'event') = 'string' then e.event ->> 'event' end as event_name,
      case when jsonb_typeof(e.event -> 'quantity') = 'number' then (e.event -> 'quantity')::numeric end as quantity,
      metering.parse_time(e.event ->> 'time') as occurred_at,
      case
        when p_organization_id is not null and coalesce(lower(e.event ->> 'organization_id') = p_organization_id::text, true)
          then p_organization_id
        when p_organization_id is null and tenancy.is_uuid(e.event ->> 'organization_id')
          then (e.event ->> 'organization_id')::uuid
      end as organization_id
    from jsonb_array_elements(p_events) with ordinality as e (event, position)
  ),
  timed as materialized (
    select
      r.*,
      r.occurred_at > statement_timestamp() + interval '5 minutes' as is_future,
      r.occurred_at < metering.oldest_event_time() as is_ancient
    from raw r
  ),
  organizations as materialized (
    select o.id
    from tenancy.organizations o
    where o.id = any (array(select distinct r.organization_id from raw r))
  ),
  checked as materialized (
    select
      r.*,
      case
        when not r.is_object
          then 'an event is a JSON object, without \u0000, half of a surrogate pair or a number that Postgres cannot hold'
        when r.id is null or length(r.id) not between 1 and 256 then 'id needs a string of 1 to 256 characters'
        when r.event_name is null or length(r.event_name) not between 1 and 128 or r.event_name ~ '[^A-Za-z0-9_.:-]'
          then 'event needs a name of 1 to 128 letters, digits and _ . : -'
        when r.quantity is null then 'quantity needs a number'
        when r.quantity < 0 then 'quantity is negative'
        when r.quantity >= 1e18 or scale(r.quantity) > 18 then 'quantity needs to be below 1e18, with at most 18 decimals'
        when p_organization_id is not null and r.organization_id is null
          then 'organization_id is not the organization of X-Organization-ID or of the API key'
        when r.organization_id is null then 'organization_id is missing: name it here or in X-Organization-ID'
        when not r.organization_id = any (array(select id from organizations)) then 'organization_id: there is no such organization'
        when r.event ? 'time' and jsonb_typeof(r.event -> 'time') <> 'null' and r.occurred_at is null
          then 'time needs RFC 3339 with an offset, such as 2026-01-31T09:30:00Z'
        when r.is_future and p_late <> 'adjust' then 'time is in the future'
        when r.is_ancient and p_late <> 'adjust' then 'time is more than five years ago'
        when coalesce(jsonb_typeof(r.event -> 'dimensions'), 'null') not in ('object', 'null') then 'dimensions needs an object'
        when pg_column_size(r.event -> 'dimensions') > 8192 or octet_length((r.event -> 'dimensions')::text) > 16384
          then 'dimensions are larger than 8 kB'
        when exists (
          select from unnest(array['unit', 'user_id', 'resource_id', 'request_id']) as f (name)
          where r.event ? f.name and (jsonb_typeof(r.event -> f.name) not in ('string', 'null') or length(r.event ->> f.name) > 256)
        ) then 'unit, user_id, resource_id and request_id need strings of at most 256 characters'
      end as problem
    from timed r
  ),
  keyed as materialized (
    select
      c.*,
      case when c.problem is null then metering.event_key(c.organization_id, p_source, c.id) end as key,
      case when c.problem is null then metering.event_fact(c.event_name, c.quantity, c.event ->> 'resource_id') end as fact
    from checked c
  )
  select array_agg(
    row(
      k.position, k.organization_id, k.key, k.fact, k.id, k.event_name, k.quantity, k.event ->> 'unit',
      case when k.is_future or k.is_ancient then null else k.occurred_at end, k.event ->> 'user_id', k.event ->> 'resource_id', k.event ->> 'request_id',
      case when jsonb_typeof(k.event -> 'dimensions') = 'object' then k.event -> 'dimensions' else '{}' end
        || case when k.is_future or k.is_ancient then jsonb_build_object('sent_time', k.event -> 'time') else '{}' end,
      k.problem
    )::metering.parsed_event
    order by k.organization_id, k.key, k.position
  )
  from keyed k
$$;

alter function metering.parse_events(jsonb, uuid, text, text) owner to goldleaves_kernel;
grant execute on function metering.parse_time(text), metering.event_key(uuid, text, text), metering.event_fact(text, numeric, text),
  metering.oldest_event_time() to goldleaves_kernel;
