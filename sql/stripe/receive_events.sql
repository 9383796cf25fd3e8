-- The inbox. An event is stored under Stripe's id before it is answered, and applied in the same transaction; when that fails, the sidecar
-- tries again. Its signature was verified where it came in, as it came in: that cannot be done on JSON that somebody has read.

create or replace function stripe.raise_invalid_event(p_problem text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT400',
    message = 'INVALID_BODY: ' || p_problem,
    hint = 'This is where Stripe sends its events; others have no business here.';
end;
$$;

-- An event as it came: a row that is not stored yet. Events of version 2 have their time as text.
create or replace function stripe.parse_event(p_payload jsonb)
returns stripe.webhook_events
language plpgsql
stable
set search_path = ''
as $$
declare
  v_event stripe.webhook_events;
  v_object jsonb := p_payload #> '{data,object}';
  v_previous jsonb;
begin
  if jsonb_typeof(p_payload) <> 'object' or jsonb_typeof(p_payload -> 'id') is distinct from 'string'
    or jsonb_typeof(p_payload -> 'type') is distinct from 'string'
    or p_payload ->> 'id' !~ '^[A-Za-z0-9_.:-]{1,255}$' or length(p_payload ->> 'type') > 255
  then
    perform stripe.raise_invalid_event('an event has an id and a type');
  end if;
  v_event.id := p_payload ->> 'id';
  v_event.type := p_payload ->> 'type';
  v_event.api_version := left(p_payload ->> 'api_version', 80);
  begin
    v_event.created_at := case jsonb_typeof(p_payload -> 'created')
      -- Not words such as now.
      when 'string' then (substring(p_payload ->> 'created' from '^\d{4}-\d\d-\d\dT[0-9:.]{5,20}(?:Z|[+-]\d\d:\d\d)$'))::timestamptz
      else stripe.time_in(p_payload -> 'created')
    end;
  exception when data_exception then
    null;
  end;
  if v_event.created_at is null or not isfinite(v_event.created_at)
    or v_event.created_at not between timestamptz '2000-01-01 00:00+00' and timestamptz '2200-01-01 00:00+00'
  then
    perform stripe.raise_invalid_event('created is no time');
  end if;
  v_event.is_live := p_payload -> 'livemode' is not distinct from 'true'::jsonb;
  v_event.payload := p_payload;
  -- What it tells of: which payment an invoice was paid by tells of the invoice, and a summary has no id of its own.
  v_event.object_id := left(
    case
      when v_event.type like 'invoice_payment.%' then stripe.id_in(v_object -> 'invoice')
      when v_event.type = 'entitlements.active_entitlement_summary.updated' then stripe.id_in(v_object -> 'customer')
      else v_object ->> 'id'
    end,
    255
  );
  v_event.customer_id := left(
    coalesce(stripe.id_in(v_object -> 'customer'), case v_object ->> 'object' when 'customer' then v_object ->> 'id' end), 255
  );
  v_event.subscription_id := left(
    case
      when v_event.type like 'customer.subscription.%' then v_event.object_id
      when v_event.type like 'invoice.%' then stripe.subscription_of_invoice(v_object)
    end,
    255
  );
  v_event.facts := '{}';
  if not stripe.is_handled(v_event.type) then
    return v_event;
  end if;
  v_event.facts := stripe.with_amounts_here(stripe.facts_of(v_event.type, v_object), v_object ->> 'currency');
  v_previous := p_payload #> '{data,previous_attributes}';
  -- Empty, too: then nothing has changed of what we use.
  if jsonb_typeof(v_previous) = 'object' and v_event.facts <> '{}' then
    v_event.facts := v_event.facts || jsonb_build_object(
      '_previous', stripe.with_amounts_here(stripe.facts_of(v_event.type, v_previous), v_object ->> 'currency')
    );
  end if;
  perform stripe.check_facts(v_event.facts);
  return v_event;
exception
  when data_exception or program_limit_exceeded then
    -- What Stripe signs and we cannot read is kept for people to look at, and for a version that can.
    if v_event.created_at is null then
      raise;
    end if;
    v_event.facts := '{}';
    v_event.object_id := null;
    v_event.subscription_id := null;
    v_event.message := format('it cannot be read: %s', left(sqlerrm, 400));
    return v_event;
end;
$$;

-- Raises what reading them later would.
create or replace function stripe.check_facts(p_facts jsonb)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  perform
    stripe.time_in(p_facts -> 'cancel_at'), stripe.time_in(p_facts -> 'canceled_at'), stripe.time_in(p_facts -> 'ended_at'),
    stripe.time_in(p_facts -> 'trial_end'), stripe.time_in(p_facts -> 'start_date'), stripe.time_in(p_facts -> 'created'),
    stripe.time_in(p_facts -> 'current_period_start'), stripe.time_in(p_facts -> 'current_period_end'), stripe.time_in(p_facts -> 'paid_at'),
    stripe.time_in(p_facts -> 'period_start'), stripe.time_in(p_facts -> 'period_end'),
    (p_facts ->> 'total')::bigint, (p_facts ->> 'amount')::bigint, (p_facts ->> 'amount_due')::bigint, (p_facts ->> 'amount_paid')::bigint,
    (p_facts ->> 'amount_refunded')::bigint, (p_facts #>> '{_previous,amount_refunded}')::bigint,
    (p_facts ->> 'cancel_at_period_end')::boolean;
end;
$$;

-- What was dead or is replayed is read anew, by what may be a newer version. What was received long ago has no payload any more.
create or replace function stripe.read_again(p_id text)
returns stripe.webhook_events
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_event stripe.webhook_events;
  v_read stripe.webhook_events;
begin
  select e.* into strict v_event from stripe.webhook_events e where e.id = p_id for update;
  v_read := case when v_event.payload = '{}' then v_event else stripe.parse_event(v_event.payload) end;
  update stripe.webhook_events e
  set
    facts = v_read.facts, object_id = v_read.object_id, customer_id = v_read.customer_id, subscription_id = v_read.subscription_id,
    status = case when v_read.payload <> '{}' and v_read.message is not null then 'dead' else 'received' end,
    message = case when v_read.payload <> '{}' then v_read.message end,
    attempts = 0, next_attempt_at = clock_timestamp(), settled_at = null
  where e.id = p_id
  returning e.* into v_event;
  return v_event;
end;
$$;

-- p_is_live: whether our key is one of live mode, whose account hears of both; null: there is none.
create or replace function stripe.receive_event(
  p_event stripe.webhook_events, p_is_live boolean, p_waits boolean, out outcome text, out message text
)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_event stripe.webhook_events := p_event;
  v_is_locked boolean := true;
begin
  begin
    perform stripe.lock_customer(v_event.customer_id);
  exception when lock_not_available then
    if not p_waits then
      raise;
    end if;
    v_is_locked := false;
  end;
  v_event.organization_id := stripe.organization_of(v_event.customer_id);
  v_event.received_at := clock_timestamp();
  v_event.next_attempt_at := v_event.received_at;
  if v_event.message is not null then
    v_event.status := 'dead';
    outcome := 'pending';
    message := v_event.message;
  elsif v_event.is_live <> p_is_live then
    v_event.status := 'ignored';
    v_event.message := format('it is of %s mode, and the key of the other one', case when v_event.is_live then 'live' else 'test' end);
    outcome := 'ignored';
    message := v_event.message;
  elsif not stripe.is_handled(v_event.type) then
    v_event.status := 'ignored';
    v_event.message := format('nothing is made of %s', left(v_event.type, 80));
    outcome := 'ignored';
    message := v_event.message;
  elsif not v_is_locked then
    v_event.status := 'received';
    v_event.next_attempt_at := v_event.received_at + stripe.pause_after(1);
    outcome := 'pending';
    message := 'another event of its customer is being applied';
  else
    -- As most turn out to be; what becomes of the others is written once that is known.
    v_event.status := 'applied';
  end if;
  v_event.attempts := case when v_event.status in ('dead', 'received') then 0 else 1 end;
  v_event.settled_at := case when v_event.status not in ('dead', 'received') then v_event.received_at end;
  insert into stripe.webhook_events select v_event.* on conflict do nothing;
  if found then
    if v_event.status <> 'applied' then
      return;
    end if;
    v_event.attempts := 0;
  elsif not v_is_locked then
    -- It is stored already. Whoever is on its row may wait for the customer.
    outcome := 'pending';
    message := 'another event of its customer is being applied';
    return;
  else
    select e.* into strict v_event from stripe.webhook_events e where e.id = p_event.id for update;
    if v_event.status in ('applied', 'stale', 'ignored') then
      outcome := 'duplicate';
      message := 'already processed';
      return;
    elsif v_event.status = 'dead' then
      -- Stripe sends no event again that was taken, unless somebody has it do so.
      v_event := stripe.read_again(v_event.id);
      if v_event.status = 'dead' then
        outcome := 'pending';
        message := v_event.message;
        return;
      end if;
    end if;
  end if;
  -- Stripe is told no more than that it is stored.
  select replace(s.outcome, 'dead', 'pending'), s.message into outcome, message from stripe.settle(v_event, p_waits) s;
end;
$$;

-- Several at once, in one transaction, for the sidecar: in the order of their customers and ids, so that two such transactions do not wait for
-- each other in a circle. error_state is an SQLSTATE where one was not stored, which costs the others nothing: of 55P03 it is to be sent by
-- itself, since somebody closes a period of its organization, or waits for that.
create or replace function stripe.receive_events(p_payloads text[], p_is_live boolean, p_waits boolean default false)
returns table ("position" integer, id text, outcome text, message text, error_state text, error_message text)
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_events stripe.webhook_events[] := array_fill(null::stripe.webhook_events, array[cardinality(p_payloads)]);
  v_next record;
begin
  for v_next in select p.position::integer as position, p.payload from unnest(p_payloads) with ordinality as p (payload, position) loop
    begin
      v_events[v_next.position] := stripe.parse_event(v_next.payload::jsonb);
    exception when data_exception or program_limit_exceeded or sqlstate 'PT400' then
      position := v_next.position;
      error_state := 'PT400';
      error_message := case when sqlstate = 'PT400' then sqlerrm else 'INVALID_BODY: this is no JSON that can be stored' end;
      return next;
    end;
  end loop;
  if p_waits then
    -- Nobody here waits for longer: who waits for a period is let go before that, and what it came with is stored and tried again later.
    perform set_config('statement_timeout', '8s', true);
  end if;
  -- Whoever has a customer in its hands for that long waits for somebody else: that must not hold up all others here.
  perform set_config('lock_timeout', '1s', true);
  for v_next in
    select e.id, e.ordinality::integer as position
    from unnest(v_events) with ordinality as e
    where e.id is not null
    order by e.customer_id, e.created_at, e.id, e.ordinality
  loop
    position := v_next.position;
    id := v_next.id;
    error_state := null;
    error_message := null;
    begin
      select r.outcome, r.message into outcome, message from stripe.receive_event(v_events[v_next.position], p_is_live, p_waits) r;
    exception when lock_not_available then
      outcome := null;
      message := null;
      error_state := sqlstate;
      error_message := sqlerrm;
      if not p_waits then
        -- There may be many of the same customer.
        perform set_config('lock_timeout', '5ms', true);
      end if;
    end;
    return next;
  end loop;
end;
$$;

alter function stripe.receive_events(text[], boolean, boolean) owner to goldleaves_kernel;
grant execute on function stripe.raise_invalid_event(text), stripe.parse_event(jsonb), stripe.check_facts(jsonb), stripe.read_again(text),
  stripe.receive_event(stripe.webhook_events, boolean, boolean) to goldleaves_kernel;
grant execute on function stripe.receive_events(text[], boolean, boolean) to sidecar;
