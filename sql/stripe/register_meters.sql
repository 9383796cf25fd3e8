-- Which meters Stripe knows of: those of ours that have a price, each under its code. `goldleaves stripe setup` makes them there, and writes
-- down here what they are; usage of a meter that is not written down is not reported.

-- With what is registered of each.
create or replace function stripe.priced_meters()
returns table (meter_code text, unit text, registered_id text, registered_name text)
language sql
stable
security definer
set search_path = ''
as $$
  select m.code, m.unit, s.id, s.event_name
  from metering.meters m
  left join stripe.meters s on s.meter_code = m.code
  where m.deleted_at is null
    and exists (select from billing.prices r where r.meter_code = m.code and r.model <> 'none')
  order by m.code
$$;

-- p_meters: [{"meter_code", "id", "event_name"}, …]. Safe to call twice: a meter that is registered alike stays as it is. Returns how many were
-- written.
create or replace function stripe.register_meters(p_meters jsonb)
returns integer
language sql
volatile
security definer
set search_path = ''
as $$
  with written as (
    insert into stripe.meters as s (meter_code, id, event_name)
    select m.meter_code, m.id, m.event_name
    from jsonb_to_recordset(p_meters) as m (meter_code text, id text, event_name text)
    on conflict (meter_code) do update
    set id = excluded.id, event_name = excluded.event_name
    where (s.id, s.event_name) is distinct from (excluded.id, excluded.event_name)
    returning s.meter_code
  )
  select count(*)::integer from written
$$;

alter function stripe.priced_meters() owner to goldleaves_kernel;
alter function stripe.register_meters(jsonb) owner to goldleaves_kernel;
