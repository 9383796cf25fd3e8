-- Having events applied again, whatever became of them: after a mistake is mended, or what was not known here is. They are read anew and the
-- sidecar applies them. It changes nothing where nothing was wrong. For the provider's staff; the audit log says who did it.

create or replace function stripe.replay_event(p_id text)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_event stripe.webhook_events;
begin
  select e.* into v_event from stripe.webhook_events e where e.id = p_id for update;
  if not found then
    raise exception using
      errcode = 'PT404',
      message = format('WEBHOOK_NOT_FOUND: Stripe has sent no event %s', left(p_id, 80)),
      hint = 'GET /stripe_webhook_events lists them. Stripe sends one again with `stripe events resend`.';
  end if;
  perform stripe.read_again(p_id);
  perform audit.append(
    coalesce(v_event.organization_id, audit.platform()), 'stripe_webhook_event.replayed', 'stripe_webhook_event', p_id,
    jsonb_build_object('type', v_event.type, 'status', v_event.status, 'attempts', v_event.attempts), null, null
  );
end;
$$;

-- All that are dead. p_since: when they came. Returns how many there were.
create or replace function stripe.replay_dead_events(p_since timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_replayed record;
  v_events integer := 0;
begin
  -- An entry of the audit log an organization: there may be very many events.
  for v_replayed in
    select coalesce(e.organization_id, audit.platform()) as organization_id, array_agg(e.id) as ids
    from stripe.webhook_events e
    where e.status = 'dead'
      and (p_since is null or e.received_at >= p_since)
    group by 1
    order by 1
  loop
    perform stripe.read_again(i.id) from unnest(v_replayed.ids) as i (id);
    perform audit.append(
      v_replayed.organization_id, 'stripe_webhook_event.replayed', 'stripe_webhook_event', null,
      jsonb_strip_nulls(jsonb_build_object('status', 'dead', 'since', metering.time_text(p_since))),
      jsonb_build_object('events', cardinality(v_replayed.ids)), null
    );
    v_events := v_events + cardinality(v_replayed.ids);
  end loop;
  return v_events;
end;
$$;

alter function stripe.replay_event(text) owner to goldleaves_kernel;
alter function stripe.replay_dead_events(timestamptz) owner to goldleaves_kernel;
grant execute on function stripe.replay_event(text), stripe.replay_dead_events(timestamptz) to platform_admin;
