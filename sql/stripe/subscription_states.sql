-- What a subscription at Stripe was, event after event: made anew of all events that there are of it, in an order that depends on nothing but
-- themselves. So it is the same in whatever order they came, and however often.

-- Within a second, by which Stripe's clock goes, the first event is the creation, and the last one the deletion. A snapshot, which we asked
-- for, is of the end of its second.
create or replace function stripe.rank_of(p_type text)
returns integer
language sql
immutable
parallel safe
as $$
  select case
    when p_type = 'customer.subscription.created' then 0
    when p_type like 'invoice.%' then 1
    when p_type = 'customer.subscription.snapshot' then 3
    when p_type = 'customer.subscription.deleted' then 4
    else 2
  end
$$;

-- Events of one second that have changed a subscription follow each other: what one says that it was before (_previous) is what the one before
-- it says that it is. Where that does not tell either, their ids do, and Stripe is asked when there is a key.
create or replace function stripe.subscription_events(p_subscription_id text)
returns table (n bigint, id text, type text, at timestamptz, facts jsonb, is_tied boolean)
language sql
stable
set search_path = ''
as $$
  with events as materialized (
    select
      e.id, e.type, e.created_at, e.object_id, stripe.rank_of(e.type) as rank, e.facts - '_previous' as facts, e.facts -> '_previous' as previous,
      count(*) over (partition by e.created_at, stripe.rank_of(e.type)) as as_many
    from stripe.webhook_events e
    where e.subscription_id = p_subscription_id
      and e.status <> 'ignored'
      and (
        e.type in (
          'customer.subscription.created', 'customer.subscription.updated', 'customer.subscription.deleted', 'customer.subscription.paused',
          'customer.subscription.resumed', 'customer.subscription.trial_will_end', 'customer.subscription.snapshot'
        )
        or e.type in ('invoice.paid', 'invoice.payment_failed')
      )
  )
  select
    row_number() over (order by e.created_at, e.rank, e.followed, e.id), e.id, e.type, e.created_at,
    e.facts || case when e.rank = 1 then jsonb_build_object('invoice', e.object_id) else '{}' end,
    e.as_many > 1 and e.rank = 2
  from (
    select
      e.*,
      case
        when e.as_many = 1 or coalesce(e.previous, '{}') = '{}' then 0
        else (
          select count(*)
          from events o
          where o.created_at = e.created_at
            and o.rank = e.rank
            and o.id <> e.id
            and o.facts @> e.previous
            and not (coalesce(o.previous, '{}') <> '{}' and e.facts @> o.previous)
        )
      end as followed
    from events e
  ) as e
$$;

-- A row an event, in their order: what is known of the subscription from then on. A payment counts where Stripe's own word for the status has
-- not come yet.
create or replace function stripe.subscription_states(p_subscription_id text)
returns table (n bigint, at timestamptz, event_id text, facts jsonb, is_tied boolean)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_event record;
  v_facts jsonb := '{}';
  v_created timestamptz;
begin
  for v_event in select e.* from stripe.subscription_events(p_subscription_id) e order by e.n loop
    if v_event.type = 'invoice.paid' then
      if v_facts ->> 'status' in ('past_due', 'unpaid', 'incomplete')
        and coalesce(v_facts ->> 'latest_invoice', v_event.facts ->> 'invoice') = v_event.facts ->> 'invoice'
      then
        v_facts := v_facts || '{"status": "active"}';
      end if;
    elsif v_event.type = 'invoice.payment_failed' then
      if v_facts ->> 'status' = 'active' then
        v_facts := v_facts || '{"status": "past_due"}';
      end if;
    elsif v_event.type = 'customer.subscription.deleted' then
      v_facts := v_facts || v_event.facts || '{"status": "canceled"}';
    else
      v_facts := v_facts || v_event.facts;
    end if;
    continue when not v_facts ? 'status';

    n := v_event.n;
    event_id := v_event.id;
    facts := v_facts;
    is_tied := v_event.is_tied;
    at := v_event.at;
    if v_created is null then
      -- Of the time before the first event that we have nothing better is known.
      v_created := least(v_event.at, stripe.time_in(v_facts -> 'created'));
      at := v_created;
    end if;
    return next;
  end loop;
end;
$$;

grant execute on function stripe.rank_of(text), stripe.subscription_events(text), stripe.subscription_states(text) to goldleaves_kernel;
