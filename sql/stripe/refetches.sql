-- Objects that the sidecar fetches from Stripe: it claims some, asks for each outside of any transaction, and hands in what it got through
-- stripe.receive_fetched(). What is claimed is nobody else's until the lease is over. p_asked is what the claim said: what was asked for since
-- then is not answered by it.

create or replace function stripe.claim_refetches(p_most integer, p_lease interval)
returns table (object_type text, object_id text, asked bigint, attempts integer)
language sql
volatile
security definer
set search_path = ''
as $$
  with due as materialized (
    select r.object_type, r.object_id
    from stripe.refetches r
    where r.next_attempt_at <= now()
    order by r.next_attempt_at
    limit p_most
    for update skip locked
  )
  update stripe.refetches r
  set next_attempt_at = clock_timestamp() + p_lease
  from due d
  where r.object_type = d.object_type
    and r.object_id = d.object_id
  returning r.object_type, r.object_id, r.asked, r.attempts
$$;

-- p_after: what Stripe wants to be left alone for.
create or replace function stripe.mark_refetch_failed(p_object_type text, p_object_id text, p_asked bigint, p_error text, p_after interval)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update stripe.refetches r
  set
    attempts = r.attempts + 1,
    last_error = left(p_error, 500),
    next_attempt_at = clock_timestamp()
      + greatest(p_after, coalesce(stripe.pause_after(r.attempts + 1), '24 hours') * (1 + random() * 0.2))
  where r.object_type = p_object_type
    and r.object_id = p_object_id
    and r.asked = p_asked
$$;

-- Given back without an attempt: nobody answers.
create or replace function stripe.postpone_refetch(p_object_type text, p_object_id text, p_asked bigint, p_after interval)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update stripe.refetches r
  set next_attempt_at = clock_timestamp() + p_after
  where r.object_type = p_object_type
    and r.object_id = p_object_id
    and r.asked = p_asked
$$;

-- There is nothing to fetch: Stripe does not know it, or it says nothing of what was asked for.
create or replace function stripe.drop_refetch(p_object_type text, p_object_id text, p_asked bigint)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  delete from stripe.refetches r where r.object_type = p_object_type and r.object_id = p_object_id and r.asked = p_asked
$$;

-- Those that nobody fetches, since there is no key, or that fail and fail.
create or replace function stripe.prune_refetches()
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  delete from stripe.refetches r
  where r.next_attempt_at < now() - interval '30 days'
    or r.attempts > 30
$$;

alter function stripe.claim_refetches(integer, interval) owner to goldleaves_kernel;
alter function stripe.mark_refetch_failed(text, text, bigint, text, interval) owner to goldleaves_kernel;
alter function stripe.postpone_refetch(text, text, bigint, interval) owner to goldleaves_kernel;
alter function stripe.drop_refetch(text, text, bigint) owner to goldleaves_kernel;
alter function stripe.prune_refetches() owner to goldleaves_kernel;
grant execute on function stripe.claim_refetches(integer, interval), stripe.mark_refetch_failed(text, text, bigint, text, interval),
  stripe.postpone_refetch(text, text, bigint, interval), stripe.drop_refetch(text, text, bigint) to sidecar;
