-- Sending messages to the provider's application, which the sidecar does outside of any transaction: it claims some, sends each, and says what
-- came of it. What is claimed is nobody else's until the lease is over: whoever dies in between has its messages sent again, under the same
-- ids. So each one arrives at least once, and nothing is waited for here.
--
-- p_attempts, in what comes of it, is what the claim said: whoever comes back after its lease changes nothing any more.

-- Those that have been due for longest, in the order in which they were written. body is what is signed and sent, byte for byte.
create or replace function notifications.claim_webhooks(p_most integer, p_lease interval)
returns table (organization_id uuid, id uuid, type text, attempts integer, body text)
language sql
volatile
security definer
set search_path = ''
as $$
  with due as materialized (
    select m.organization_id, m.id
    from notifications.webhook_messages m
    where m.status = 'pending'
      and m.next_attempt_at <= now()
    order by m.next_attempt_at, m.created_at
    limit p_most
    for update skip locked
  ), claimed as (
    update notifications.webhook_messages m
    set next_attempt_at = clock_timestamp() + p_lease
    from due d
    where m.organization_id = d.organization_id
      and m.id = d.id
    returning m.*
  )
  select
    c.organization_id, c.id, c.type, c.attempts,
    format(
      '{"type":%s,"timestamp":"%s","data":%s}',
      to_json(c.type), to_char(c.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), c.payload
    )
  from claimed c
  order by c.created_at, c.id
$$;

create or replace function notifications.mark_webhook_delivered(p_organization_id uuid, p_id uuid, p_attempts integer, p_status integer)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update notifications.webhook_messages m
  set status = 'delivered', attempts = m.attempts + 1, last_status = p_status, last_error = null, delivered_at = clock_timestamp()
  where m.organization_id = p_organization_id
    and m.id = p_id
    and m.status = 'pending'
    and m.attempts = p_attempts
$$;

-- How long to wait after so many attempts: the beginning of the schedule that the Standard Webhooks specification gives. Null: no more.
create or replace function notifications.webhook_pause(p_attempts integer)
returns interval
language sql
immutable
parallel safe
set search_path = ''
as $$
  select ('{5 seconds,5 minutes,30 minutes,2 hours,5 hours,10 hours,14 hours}'::interval[])[p_attempts]
$$;

-- p_after: what the receiver asked to be left alone for. Returns true when that was the last attempt.
create or replace function notifications.mark_webhook_failed(
  p_organization_id uuid, p_id uuid, p_attempts integer, p_status integer, p_error text, p_after interval
)
returns boolean
language sql
volatile
security definer
set search_path = ''
as $$
  update notifications.webhook_messages m
  set
    attempts = m.attempts + 1,
    status = case when notifications.webhook_pause(m.attempts + 1) is null then 'dead' else 'pending' end,
    -- Not all of those that failed together come back together.
    next_attempt_at = clock_timestamp() + greatest(coalesce(notifications.webhook_pause(m.attempts + 1), '0') * (1 + random() * 0.2), p_after),
    last_status = p_status,
    last_error = left(p_error, 500)
  where m.organization_id = p_organization_id
    and m.id = p_id
    and m.status = 'pending'
    and m.attempts = p_attempts
  returning m.status = 'dead'
$$;

-- Gives back what was claimed and not sent, which counts as no attempt.
create or replace function notifications.postpone_webhook(p_organization_id uuid, p_id uuid, p_attempts integer, p_after interval)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update notifications.webhook_messages m
  set next_attempt_at = clock_timestamp() + p_after
  where m.organization_id = p_organization_id
    and m.id = p_id
    and m.status = 'pending'
    and m.attempts = p_attempts
$$;

-- What waits, for metrics.
create or replace function notifications.webhook_backlog()
returns table (pending bigint, dead bigint, oldest_seconds double precision)
language sql
stable
security definer
set search_path = ''
as $$
  select p.pending, (select count(*) from notifications.webhook_messages m where m.status = 'dead'), p.oldest_seconds
  from (
    select
      count(*) as pending,
      coalesce(extract(epoch from greatest(clock_timestamp() - min(m.created_at), '0')), 0)::double precision as oldest_seconds
    from notifications.webhook_messages m
    where m.status = 'pending'
  ) as p
$$;

-- What was delivered a month ago, and what has waited for a month without anybody who sends it: there is no WEBHOOK_URL. Dead ones stay.
create or replace function notifications.prune_webhooks()
returns void
language sql
volatile
set search_path = ''
as $$
  with delivered as materialized (
    select m.organization_id, m.id
    from notifications.webhook_messages m
    where m.status = 'delivered'
      and m.delivered_at < now() - interval '30 days'
    limit 50000
    for update skip locked
  )
  delete from notifications.webhook_messages m
  using delivered d
  where m.organization_id = d.organization_id
    and m.id = d.id;

  with unsent as materialized (
    select m.organization_id, m.id
    from notifications.webhook_messages m
    where m.status = 'pending'
      and m.next_attempt_at < now() - interval '30 days'
    limit 50000
    for update skip locked
  )
  delete from notifications.webhook_messages m
  using unsent u
  where m.organization_id = u.organization_id
    and m.id = u.id;
$$;

alter function notifications.claim_webhooks(integer, interval) owner to goldleaves_kernel;
alter function notifications.mark_webhook_delivered(uuid, uuid, integer, integer) owner to goldleaves_kernel;
alter function notifications.mark_webhook_failed(uuid, uuid, integer, integer, text, interval) owner to goldleaves_kernel;
alter function notifications.postpone_webhook(uuid, uuid, integer, interval) owner to goldleaves_kernel;
alter function notifications.webhook_backlog() owner to goldleaves_kernel;
grant execute on function notifications.webhook_pause(integer), notifications.prune_webhooks() to goldleaves_kernel;
grant execute on function
  notifications.claim_webhooks(integer, interval), notifications.mark_webhook_delivered(uuid, uuid, integer, integer),
  notifications.mark_webhook_failed(uuid, uuid, integer, integer, text, interval),
  notifications.postpone_webhook(uuid, uuid, integer, interval), notifications.webhook_backlog() to sidecar;
