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
      when 'string' then (p_payload ->> 'created')::timestamptz
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
  v_event.object_id := left(v_object ->> 'id', 255);
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
  v_event.facts := stripe.facts_of(v_event.type, v_object);
  v_previous := stripe.facts_of(v_event.type, p_payload #> '{data,previous_attributes}');
  if v_previous <> '{}' then
    v_event.facts := v_event.facts || jsonb_build_object('_previous', v_previous);
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
declare
  v_name text;
begin
  foreach v_name in array '{cancel_at,canceled_at,ended_at,trial_end,start_date,created,current_period_start,current_period_end,paid_at,period_start,period_end}'::text[] loop
    perform stripe.time_in(p_facts -> v_name);
  end loop;
  foreach v_name in array '{total,amount,amount_due,amount_paid,amount_refunded}'::text[] loop
    perform (p_facts ->> v_name)::bigint;
  end loop;
  perform (p_facts ->> 'cancel_at_period_end')::boolean;
end;
$$;

-- p_is_live: whether our key is one of live mode, whose account hears of both; null: there is none.
create or replace function stripe.receive_event(p_payload jsonb, p_is_live boolean, p_waits boolean, out id text, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_event stripe.webhook_events := stripe.parse_event(p_payload);
  v_stored stripe.webhook_events;
begin
  id := v_event.id;
  perform stripe.lock_customer(v_event.customer_id);
  insert into stripe.webhook_events as e (
    id, type, api_version, created_at, is_live, object_id, customer_id, subscription_id, facts, payload, status, message, attempts
  )
  values (
    v_event.id, v_event.type, v_event.api_version, v_event.created_at, v_event.is_live, v_event.object_id, v_event.customer_id,
    v_event.subscription_id, v_event.facts, v_event.payload,
    case when v_event.message is not null then 'dead' when v_event.is_live <> p_is_live then 'ignored' else 'received' end,
    v_event.message, 0
  )
  on conflict do nothing
  returning * into v_stored;
  if not found then
    select * into strict v_stored from stripe.webhook_events e where e.id = v_event.id for update;
    if v_stored.status in ('applied', 'stale', 'ignored', 'dead') then
      outcome := 'duplicate';
      message := 'already processed';
      return;
    end if;
  elsif v_stored.status = 'ignored' then
    outcome := 'ignored';
    message := format('it is of %s mode, and the key of the other one', case when v_event.is_live then 'live' else 'test' end);
    update stripe.webhook_events e set message = receive_event.message, settled_at = clock_timestamp() where e.id = v_event.id;
    return;
  elsif v_stored.status = 'dead' then
    outcome := 'pending';
    message := v_stored.message;
    return;
  end if;
  select s.outcome, s.message into outcome, message from stripe.settle(v_stored, p_waits) s;
end;
$$;

-- Several at once, in one transaction, for the sidecar: in the order of their customers and ids, so that two such transactions do not wait for
-- each other in a circle. error_state is an SQLSTATE where one was not stored: it costs the others nothing. is_held_up: to be sent by itself,
-- since somebody closes a period of its organization.
create or replace function stripe.receive_events(p_payloads text[], p_is_live boolean, p_waits boolean default false)
returns table ("position" integer, id text, outcome text, message text, error_state text, error_message text)
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_payload record;
begin
  for v_payload in
    select p.position::integer as position, p.payload
    from unnest(p_payloads) with ordinality as p (payload, position)
    order by substring(p.payload from '"customer"\s*:\s*"([^"]*)"'), substring(p.payload from '"id"\s*:\s*"([^"]*)"'), p.position
  loop
    position := v_payload.position;
    begin
      error_state := null;
      error_message := null;
      select r.id, r.outcome, r.message into id, outcome, message
      from stripe.receive_event(v_payload.payload::jsonb, p_is_live, p_waits) r;
    exception
      when lock_not_available then
        id := null;
        outcome := null;
        message := null;
        error_state := sqlstate;
        error_message := sqlerrm;
      when data_exception or program_limit_exceeded or sqlstate 'PT400' then
        id := null;
        outcome := null;
        message := null;
        error_state := 'PT400';
        error_message := case when sqlstate = 'PT400' then sqlerrm else 'INVALID_BODY: this is no JSON that can be stored' end;
    end;
    return next;
  end loop;
end;
$$;

alter function stripe.receive_events(text[], boolean, boolean) owner to goldleaves_kernel;
grant execute on function stripe.raise_invalid_event(text), stripe.parse_event(jsonb), stripe.check_facts(jsonb),
  stripe.receive_event(jsonb, boolean, boolean) to goldleaves_kernel;
grant execute on function stripe.receive_events(text[], boolean, boolean) to sidecar;
