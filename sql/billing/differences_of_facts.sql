-- What an invoice rests on, compared with what there is: events, versions of meters, weights of operations, and who paid since when.

-- p_anew: what the events come to now, from metering.counted_anew().
create or replace function billing.differences_of_facts(p_invoice billing.invoices, p_anew metering.usage_rollups[])
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  with kept as (
    select k.*
    from jsonb_to_recordset(p_invoice.facts -> 'events') as k (
      meter text, version integer, billing_entity_id uuid, events bigint, value numeric, digest numeric
    )
  ),
  anew as (
    select
      a.meter_code as meter, a.meter_version as version, a.billing_entity_id,
      sum(a.events)::bigint as events, sum(a.value) as value, sum(a.digest) as digest
    from unnest(p_anew) a
    group by 1, 2, 3
  )
  select
    'usage',
    format('value %s, events %s', trim_scale(coalesce(k.value, 0)), coalesce(k.events, 0)),
    format('value %s, events %s', trim_scale(coalesce(a.value, 0)), coalesce(a.events, 0)),
    format(
      '%s, paid by %s: %s',
      case coalesce(k.version, a.version)
        when 0 then format('events %s, which no meter counts', coalesce(k.meter, a.meter))
        else format('meter %s in its version %s', coalesce(k.meter, a.meter), coalesce(k.version, a.version))
      end,
      case coalesce(k.billing_entity_id, a.billing_entity_id)
        when p_invoice.organization_id then 'the organization'
        else format('user %s', coalesce(k.billing_entity_id, a.billing_entity_id))
      end,
      case
        when k.meter is null then 'there was nothing of it when the invoice was issued'
        when a.meter is null then 'nothing of it is left'
        when (k.events, k.value) = (a.events, a.value) then 'as many events as there were, with the same sum, but not the same ones'
        else 'the events are not those that the invoice rests on'
      end
    )
  from kept k
  full join anew a on a.meter = k.meter and a.version = k.version and a.billing_entity_id = k.billing_entity_id
  where p_invoice.facts is not null
    and (k.events, k.value, k.digest) is distinct from (a.events, a.value, a.digest)
  union all
  select
    'meter', m.value #>> '{}', to_jsonb(v) ->> m.key,
    format('%s of version %s of meter %s is not what it was', m.key, k.version ->> 'version', k.version ->> 'meter_code')
  from jsonb_array_elements(p_invoice.facts -> 'meter_versions') as k (version)
  left join metering.meter_versions v
    on v.meter_code = k.version ->> 'meter_code' and v.version = (k.version ->> 'version')::integer
  cross join lateral jsonb_each(k.version) as m
  where m.value is distinct from coalesce(to_jsonb(v) -> m.key, 'null')
  union all
  select
    'weight', k.weight ->> 'weight', w.weight::text,
    format('the weight of %s from %s on is not what it was', k.weight ->> 'operation', k.weight ->> 'effective_from')
  from jsonb_array_elements(p_invoice.facts -> 'weights') as k (weight)
  left join metering.operation_weights w
    on w.operation = k.weight ->> 'operation'
    and w.effective_from = (k.weight ->> 'effective_from')::timestamptz
    and w.organization_id is not distinct from case when (k.weight ->> 'own')::boolean then p_invoice.organization_id end
  where w.weight is distinct from (k.weight ->> 'weight')::numeric
  union all
  select
    'attribution', p_invoice.facts ->> 'attribution', o.attribution::text, 'who pays since when is not what it was'
  from (
    select (
      select jsonb_build_object('billing_user_id', o.billing_user_id, 'billing_start_at', o.billing_start_at)
      from tenancy.organizations o
      where o.id = p_invoice.organization_id
        and o.billing_start_at < p_invoice.period_end
    ) as attribution
  ) as o
  where p_invoice.facts is not null
    and coalesce(p_invoice.facts -> 'attribution', 'null') is distinct from coalesce(o.attribution, 'null')
  union all
  select
    'subscription', p_invoice.facts ->> 'phases', f.facts ->> 'phases', 'the phases of the subscription are not what they were'
  from (select billing.phases_of(p_invoice.organization_id, p_invoice.period_start, p_invoice.period_end) as facts) as f
  where p_invoice.facts is not null
    and coalesce(p_invoice.facts -> 'phases', 'null') is distinct from coalesce(f.facts -> 'phases', 'null')
  union all
  -- Whether it is ours that counts is in its kind.
  select
    'period', p_invoice.facts ->> 'invoice_mode', p.invoice_mode, 'Stripe''s invoice of the period is made by other means than it was'
  from billing.billing_periods p
  where p.organization_id = p_invoice.organization_id
    and p.period_start = p_invoice.period_start
    and p_invoice.kind = 'statement'
    and p_invoice.facts ->> 'invoice_mode' is distinct from p.invoice_mode
$$;

-- p_differing: what metering.differing_rollups() found. Where the invoice rests on what the events are, the rollups are wrong; elsewhere
-- the hour is where the events were changed.
create or replace function billing.differences_of_hours(p_invoice billing.invoices, p_anew metering.usage_rollups[], p_differing jsonb)
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  with differing as materialized (
    select
      d.grain, d.meter_code, d.bucket_start, sum(d.rolled_events) as rolled_events, sum(d.rolled_value) as rolled_value,
      sum(d.events) as events, sum(d.value) as value, count(*) as groups, (array_agg(d.groups order by d.groups))[1] as first_group
    from jsonb_to_recordset(p_differing) as d (
      grain text, meter_code text, bucket_start timestamptz, groups jsonb, rolled_events bigint, rolled_value numeric, events bigint, value numeric
    )
    group by 1, 2, 3
  ),
  numbered as (
    select d.*, row_number() over (order by d.grain <> 'hour', d.bucket_start, d.meter_code) as n, count(*) over () as all_of_them
    from differing d
  )
  select
    case when n.grain = 'hour' then 'hour' else 'rollup' end,
    format('value %s, events %s', trim_scale(n.rolled_value), n.rolled_events),
    format('value %s, events %s', trim_scale(n.value), n.events),
    format(
      case n.grain
        when 'hour' then '%1$s in the hour of %2$s%3$s: its events are not what was rolled up of them'
        when 'before' then '%1$s before %2$s: what was stored by then is not what was rolled up of it'
        else '%1$s in the period of %2$s%3$s: what was rolled up for the period is not the sum of its hours'
      end,
      n.meter_code, metering.time_text(n.bucket_start),
      case when n.first_group = '{}' then '' else format(' (%s of its groups, such as %s)', n.groups, n.first_group) end
    )
  from numbered n
  where n.n <= 50
  union all
  select 'hour', null, null, format('and %s more hours and meters', n.all_of_them - 50)
  from numbered n
  where n.n = 51
$$;

-- In the hours that differ, or, where none does, in all of the period: someone may have written rollups to fit.
create or replace function billing.events_that_differ(p_invoice billing.invoices, p_differing jsonb, p_timezone text)
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  with hours as (
    select
      d.bucket_start as start_at,
      least(
        d.bucket_start + metering.bucket_length(p_invoice.period_start, p_invoice.period_end, p_timezone), p_invoice.period_end
      ) as end_at,
      d.rolled_value - d.value as lost
    from jsonb_to_recordset(p_differing) as d (grain text, bucket_start timestamptz, rolled_value numeric, value numeric)
    where d.grain = 'hour'
  ),
  places as (
    select h.start_at, h.end_at, h.lost from hours h
    where (select count(distinct o.start_at) from hours o) <= 200
    union all
    select p_invoice.period_start, p_invoice.period_end, null
    where (select count(distinct o.start_at) from hours o) not between 1 and 200
  ),
  numbered as (
    select t.*, row_number() over (order by t.rank, t.occurred_at, t.event_id) as n, count(*) over () as all_of_them
    from (
      select array_agg(p.start_at) as starts, array_agg(p.end_at) as ends, array_agg(p.lost) as lost from places p
    ) as a
    cross join lateral metering.tampered_events(
      p_invoice.organization_id, a.starts, a.ends, a.lost, p_invoice.issued_generation, p_invoice.issued_xid
    ) t
  )
  select
    'event', n.was, n.is_now,
    concat_ws(
      ' ', case when n.event_id is not null then format('event %s', n.event_id) end,
      case when n.idempotency_key is not null then format('(sent as %s by %s)', n.idempotency_key, n.source) else '(by ' || n.source || ')' end
    ) || case when n.event_id is not null then ': ' else '' end || n.sign
  from numbered n
  where n.n <= 50
  union all
  select 'event', null, null, format('and %s more events', n.all_of_them - 50)
  from numbered n
  where n.n = 51
$$;

grant execute on function billing.differences_of_facts(billing.invoices, metering.usage_rollups[]),
  billing.differences_of_hours(billing.invoices, metering.usage_rollups[], jsonb),
  billing.events_that_differ(billing.invoices, jsonb, text) to goldleaves_kernel;
