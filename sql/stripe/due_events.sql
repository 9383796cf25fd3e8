-- Events that were stored and not applied: the sidecar tries them again, each in a transaction of its own, in which it may wait for who closes a
-- period. What is claimed is left to whoever did it for a while, so that any number of sidecars do it beside each other; who dies in between has
-- it tried again after that.

create or replace function stripe.due_events(p_most integer, p_lease interval)
returns table (id text)
language sql
volatile
security definer
set search_path = ''
as $$
  with due as materialized (
    select e.id
    from stripe.webhook_events e
    where e.status in ('received', 'failed')
      and e.next_attempt_at <= clock_timestamp()
    order by e.next_attempt_at
    limit p_most
    for update skip locked
  ), claimed as (
    update stripe.webhook_events e
    set next_attempt_at = clock_timestamp() + p_lease
    from due d
    where e.id = d.id
    returning e.id, e.created_at
  )
  select c.id from claimed c order by c.created_at, c.id
$$;

-- What came of it; no row where there was nothing left to do.
create or replace function stripe.apply_event(p_id text)
returns table (outcome text, message text)
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_event stripe.webhook_events;
begin
  -- Nobody waits for long with a customer in its hands, for whom others wait: it is tried again.
  perform set_config('statement_timeout', '8s', true), set_config('lock_timeout', '5s', true);
  -- The customer first, as whoever receives an event does, and the row in a later statement, which sees what that waited for.
  perform stripe.lock_customer((select e.customer_id from stripe.webhook_events e where e.id = p_id));
  select e.* into v_event
  from stripe.webhook_events e
  where e.id = p_id
    and e.status in ('received', 'failed')
  for update;
  if found then
    return query select s.outcome, s.message from stripe.settle(v_event, true) s;
  end if;
end;
$$;

-- An attempt that ended in what no transaction can write down, such as a timeout. Returns whether it was the last one.
create or replace function stripe.fail_event(p_id text, p_message text)
returns boolean
language sql
volatile
security definer
set search_path = ''
as $$
  update stripe.webhook_events e
  set
    status = case when stripe.pause_after(e.attempts + 1) is null then 'dead' else 'failed' end,
    message = left(p_message, 500),
    attempts = e.attempts + 1,
    next_attempt_at = clock_timestamp() + coalesce(stripe.pause_after(e.attempts + 1) * (1 + random() * 0.2), '0')
  where e.id = p_id
    and e.status in ('received', 'failed')
  returning e.status = 'dead'
$$;

-- What is not applied, for metrics.
create or replace function stripe.event_backlog()
returns table (pending bigint, dead bigint, unlinked bigint, oldest_seconds double precision)
language sql
stable
security definer
set search_path = ''
as $$
  select
    p.pending, (select count(*) from stripe.webhook_events e where e.status = 'dead'),
    (select count(*) from stripe.webhook_events e where e.status = 'unlinked'), p.oldest_seconds
  from (
    select
      count(*) as pending,
      coalesce(extract(epoch from greatest(clock_timestamp() - min(e.received_at), '0')), 0)::double precision as oldest_seconds
    from stripe.webhook_events e
    where e.status in ('received', 'failed')
  ) as p
$$;

-- Of what was settled 13 months ago, the payload goes where anything is made of the event, since that is made of the facts of all events that
-- there are of a subscription or invoice; else the event goes with it. What waits, or is dead, stays.
create or replace function stripe.prune_events()
returns void
language sql
volatile
set search_path = ''
as $$
  with old as materialized (
    select e.id
    from stripe.webhook_events e
    where e.settled_at < now() - interval '13 months'
      and e.payload <> '{}'
    limit 50000
    for update skip locked
  ), gone as (
    delete from stripe.webhook_events e
    using old o
    where e.id = o.id
      and (e.status = 'ignored' or e.facts = '{}')
  )
  update stripe.webhook_events e
  set payload = '{}'
  from old o
  where e.id = o.id
    and e.status <> 'ignored'
    and e.facts <> '{}'
$$;

alter function stripe.due_events(integer, interval) owner to goldleaves_kernel;
alter function stripe.apply_event(text) owner to goldleaves_kernel;
alter function stripe.fail_event(text, text) owner to goldleaves_kernel;
alter function stripe.event_backlog() owner to goldleaves_kernel;
grant execute on function stripe.prune_events() to goldleaves_kernel;
grant execute on function stripe.due_events(integer, interval), stripe.apply_event(text), stripe.fail_event(text, text), stripe.event_backlog()
  to sidecar;
