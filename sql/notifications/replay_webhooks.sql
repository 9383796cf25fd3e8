-- Sending messages again, whatever became of them: after a long outage of the receiver, or because it lost them. They keep their ids, so that a
-- receiver that had one already can tell. For the provider's staff; the audit log says who did it.

-- p_organization_id: of X-Organization-ID, where one is named.
create or replace function notifications.replay_webhook(p_organization_id uuid, p_id uuid)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_message notifications.webhook_messages;
begin
  select m.* into v_message
  from notifications.webhook_messages m
  where m.id = p_id
    and (p_organization_id is null or m.organization_id = p_organization_id)
  for update;
  if not found then
    raise exception using
      errcode = 'PT404',
      message = format('WEBHOOK_NOT_FOUND: there is no message %s', p_id),
      hint = 'GET /webhook_messages lists them. What was delivered is deleted after 30 days.';
  end if;
  update notifications.webhook_messages m
  set status = 'pending', attempts = 0, next_attempt_at = now(), delivered_at = null
  where m.organization_id = v_message.organization_id
    and m.id = v_message.id;
  perform audit.append(
    v_message.organization_id, 'webhook_message.replayed', 'webhook_message', v_message.id::text,
    jsonb_build_object('type', v_message.type, 'status', v_message.status, 'attempts', v_message.attempts), null, null
  );
end;
$$;

-- p_status: delivered, too, but only with a time. p_since: when they were written. Returns how many there were.
create or replace function notifications.replay_webhooks(p_organization_id uuid, p_status text, p_since timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_replayed record;
  v_messages integer := 0;
begin
  if p_status is null or p_status not in ('dead', 'delivered', 'pending') then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_REPLAY: status is dead, delivered or pending, not %s', coalesce(p_status, 'null'));
  elsif p_status = 'delivered' and p_since is null then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_REPLAY: since is needed where messages were delivered',
      hint = 'Say from when on they are to be sent again, such as {"status": "delivered", "since": "2026-01-31T08:00:00Z"}.';
  end if;
  -- An entry of the audit log an organization: there may be very many messages.
  for v_replayed in
    with again as (
      update notifications.webhook_messages m
      set status = 'pending', attempts = 0, next_attempt_at = now(), delivered_at = null
      where m.status = p_status
        and (p_since is null or m.created_at >= p_since)
        and (p_organization_id is null or m.organization_id = p_organization_id)
      returning m.organization_id
    )
    select a.organization_id, count(*)::integer as messages
    from again a
    group by a.organization_id
    order by a.organization_id
  loop
    perform audit.append(
      v_replayed.organization_id, 'webhook_message.replayed', 'webhook_message', null,
      jsonb_strip_nulls(jsonb_build_object('status', p_status, 'since', metering.time_text(p_since))),
      jsonb_build_object('messages', v_replayed.messages), null
    );
    v_messages := v_messages + v_replayed.messages;
  end loop;
  return v_messages;
end;
$$;

-- A message without content, for who sets up a receiver. It belongs to the provider, not to an organization.
create or replace function notifications.send_test_webhook()
returns uuid
language sql
volatile
security definer
set search_path = ''
as $$
  insert into notifications.webhook_messages (organization_id, type, payload) values (audit.platform(), 'webhook.test', '{}') returning id
$$;

alter function notifications.replay_webhook(uuid, uuid) owner to goldleaves_kernel;
alter function notifications.replay_webhooks(uuid, text, timestamptz) owner to goldleaves_kernel;
alter function notifications.send_test_webhook() owner to goldleaves_kernel;
grant execute on function notifications.replay_webhook(uuid, uuid), notifications.replay_webhooks(uuid, text, timestamptz),
  notifications.send_test_webhook() to platform_admin;
