-- Which events somebody changed behind everybody's back. Usage is written once, so what follows is evidence, the strongest first:
-- the key of an event, made when it was recorded, says another quantity, name, resource or time, or there is an event without a key or a key
-- without its event; and a row that was written after the invoice that rests on it (xmin) was written by somebody who passed all triggers.

-- Whether a row was written at or after a transaction, of the last two thousand million.
create or replace function metering.is_written_since(p_xmin xid, p_since xid8)
returns boolean
language sql
immutable
parallel safe
set search_path = ''
as $$
  select case
    when p_xmin::text::bigint < 3 then false
    else (p_xmin::text::numeric - p_since::text::numeric % 4294967296 + 4294967296) % 4294967296 < 2147483648
  end
$$;

-- What of an event decides what it costs, for people.
create or replace function metering.event_text(p_event metering.usage_events)
returns text
language sql
stable
set search_path = ''
as $$
  select concat_ws(
    ', ',
    format('%s %s', p_event.event_name, trim_scale(p_event.quantity)),
    'at ' || metering.time_text(p_event.occurred_at),
    'for ' || p_event.resource_id,
    'by ' || p_event.user_id,
    'in workspace ' || p_event.workspace_id,
    'weighing ' || trim_scale(p_event.weighted_units),
    'paid by user ' || p_event.payer_user_id,
    'belonging to ' || metering.time_text(p_event.belongs_at),
    case p_event.event_type when 'void' then 'voiding ' || p_event.corrects else 'correcting ' || p_event.corrects end,
    nullif(p_event.dimensions, '{}')::text
  )
$$;

-- Of these hours (p_starts, p_ends) of one organization. p_lost: how much less the events of the hour come to than what was rolled up of
-- them, for the quantity that an event had. p_since: the position at which the invoice was issued; p_generation: of which cluster.
-- rank: 1 the key says otherwise, 2 moved, 3 gone, 4 without a key, 5 written later and nothing else is known.
create or replace function metering.tampered_events(
  p_organization_id uuid, p_starts timestamptz[], p_ends timestamptz[], p_lost numeric[], p_generation integer, p_since xid8
)
returns table (rank integer, event_id uuid, idempotency_key text, source text, occurred_at timestamptz, was text, is_now text, sign text)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_is_comparable boolean := p_generation = (select max(g.generation) from metering.generations g);
  v_from timestamptz := (select min(t) from unnest(p_starts) t);
  v_until timestamptz := (select max(t) from unnest(p_ends) t);
begin
  return query
    with hours as materialized (
      select s.start_at, s.end_at, array_agg(distinct s.lost) as lost
      from unnest(p_starts, p_ends, p_lost) as s (start_at, end_at, lost)
      group by 1, 2
    ),
    -- The row itself beside what is asked of it.
    events as materialized (
      select
        e as event, e.id, e.occurred_at, e.event_type,
        case
          when e.event_type = 'void' then metering.event_key(e.organization_id, 'void', e.corrects::text)
          when e.idempotency_key is not null then metering.event_key(e.organization_id, e.source, e.idempotency_key)
        end as key,
        coalesce(v_is_comparable and metering.is_written_since(e.xmin, p_since), false) as is_written_since,
        h.lost
      from hours h
      join metering.usage_events e
        on e.organization_id = p_organization_id
        and e.occurred_at >= h.start_at
        and e.occurred_at < h.end_at
    ),
    keyed as materialized (
      select e.*, k.key is not null as has_key, k.fact, k.occurred_at as key_at
      from events e
      left join metering.event_keys k on k.organization_id = p_organization_id and k.key = e.key
    ),
    -- Keys that say that their event is here.
    missing as materialized (
      select k.key, k.fact, k.occurred_at, substr(k.key::text, 21) as id_end
      from metering.event_keys k
      join hours h on k.occurred_at >= h.start_at and k.occurred_at < h.end_at
      where k.organization_id = p_organization_id
        and k.key not in (select e.key from events e where e.key is not null)
    ),
    -- An event's id ends like its key.
    strayed as materialized (
      select m.key, m.fact, m.occurred_at as key_at, e as event, e.id, e.occurred_at, e.organization_id
      from (select array_agg(n.id_end) as id_ends from missing n having count(*) > 0) as a
      join metering.usage_events e
        on substr(e.id::text, 21) = any (a.id_ends)
        -- Moved to any time in the organization, or within the month to another one.
        and (e.organization_id = p_organization_id or e.occurred_at >= v_from and e.occurred_at < v_until)
      join missing m on m.id_end = substr(e.id::text, 21)
    ),
    found as (
      select
        case
          when k.key is null then 5
          when not k.has_key then 4
          when k.event_type <> 'void' and k.fact <> f.fact then 1
          when k.key_at <> k.occurred_at then 2
          else 5
        end as rank,
        k.*
      from keyed k
      cross join lateral (
        select metering.event_fact((k.event).event_name, (k.event).quantity, (k.event).resource_id) as fact
      ) as f
    )
    select
      f.rank, f.id, (f.event).idempotency_key, (f.event).source, f.occurred_at,
      case f.rank
        when 1 then (
          select format('quantity %s', trim_scale((f.event).quantity + l.lost))
          -- Most have a quantity of one.
          from unnest(f.lost || (1 - (f.event).quantity)) as l (lost)
          where metering.event_fact((f.event).event_name, (f.event).quantity + l.lost, (f.event).resource_id) = f.fact
          limit 1
        )
        when 2 then 'at ' || metering.time_text(f.key_at)
      end,
      metering.event_text(f.event),
      case f.rank
        when 1 then 'its quantity, name or resource_id is not what was recorded under its key'
        when 2 then 'it was recorded for another time'
        when 4 then case
          when f.event_type = 'void' then 'nothing was voided here: there is no key of it'
          when s.id is not null then 'its id or source is not what it was recorded with'
          else 'it was never recorded: there is no key of it'
        end
        else 'nothing writes a row of usage again'
      end || case when f.is_written_since then '; its row was written after the invoice was issued' else '' end
    from found f
    left join (select distinct t.id from strayed t where t.organization_id = p_organization_id) as s on s.id = f.id
    where f.rank < 5 or f.is_written_since
    union all
    select
      case when s.organization_id is null then 3 else 2 end, s.id, (s.event).idempotency_key, (s.event).source, m.occurred_at,
      'at ' || metering.time_text(m.occurred_at),
      case
        when s.organization_id is null then 'gone'
        when s.organization_id = p_organization_id then metering.event_text(s.event)
        -- Not which one: whoever asks may be of this one only.
        else 'in another organization'
      end,
      case
        when s.organization_id is null then format('the event of key %s is gone', m.key)
        when s.organization_id = p_organization_id then 'it was recorded for another time'
        else 'it was moved to another organization'
      end
    from missing m
    left join strayed s on s.key = m.key
    -- Those that are in these hours are named there.
    where s.id is null or s.organization_id <> p_organization_id or s.id not in (select e.id from events e);
end;
$$;

grant execute on function metering.is_written_since(xid, xid8), metering.event_text(metering.usage_events),
  metering.tampered_events(uuid, timestamptz[], timestamptz[], numeric[], integer, xid8) to goldleaves_kernel;
