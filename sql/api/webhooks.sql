-- Messages to the provider's application: what was sent, what waits, and what could not be delivered.
create view api.webhook_messages with (security_invoker) as
select id, organization_id, type, payload, status, attempts, next_attempt_at, last_status, last_error, created_at, delivered_at
from notifications.webhook_messages;

comment on view api.webhook_messages is 'Messages to the provider''s application, and what became of them. For platform_admin.';
comment on column api.webhook_messages.id is 'The webhook-id under which it is sent, each time the same. What replay_webhook takes.';
comment on column api.webhook_messages.organization_id is 'Which organization it tells of; that of the provider for webhook.test.';
comment on column api.webhook_messages.type is 'What it tells of: invoice.finalized, subscription.changed, quota.reached or webhook.test.';
comment on column api.webhook_messages.payload is 'What is sent as data.';
comment on column api.webhook_messages.status is 'pending: it is to be sent; delivered; dead: every attempt failed, and nobody tries again.';
comment on column api.webhook_messages.attempts is 'How often it was tried since it was written or replayed.';
comment on column api.webhook_messages.next_attempt_at is 'When a pending one is tried next (UTC).';
comment on column api.webhook_messages.last_status is 'The HTTP status of the last answer; null when there was none.';
comment on column api.webhook_messages.last_error is 'Why the last attempt failed; null when none did, or it was delivered.';
comment on column api.webhook_messages.created_at is 'When it was written, with what it tells of (UTC); sent as timestamp.';
comment on column api.webhook_messages.delivered_at is 'When it was delivered (UTC); null unless it is.';

grant select on api.webhook_messages to platform_admin;

create function api.replay_webhook(message_id uuid)
returns api.webhook_messages
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('replays webhook messages');
  perform notifications.replay_webhook(tenancy.current_org(), replay_webhook.message_id);
  return (select m from api.webhook_messages m where m.id = replay_webhook.message_id);
end;
$$;

comment on function api.replay_webhook(uuid) is $$Send a message to your application again

For platform_admin. Whatever became of it: it is sent under the same id, and if that fails, tried again as a new one is. Where X-Organization-ID
names an organization, the message is one of it.

Errors: ROLE_REQUIRED (403), WEBHOOK_NOT_FOUND (404).$$;

create function api.replay_webhooks(status text default 'dead', since timestamptz default null)
returns integer
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('replays webhook messages');
  return notifications.replay_webhooks(tenancy.current_org(), replay_webhooks.status, replay_webhooks.since);
end;
$$;

comment on function api.replay_webhooks(text, timestamptz) is $$Send messages to your application again

For platform_admin. All that are dead, or have the status that is named: pending ones are then tried at once, and for those that were delivered
since is needed. since: only what was written from then on. Where X-Organization-ID names an organization, only its messages. Returns how many
there are.

Errors: INVALID_REPLAY (400), ROLE_REQUIRED (403).$$;

grant execute on function api.replay_webhook(uuid), api.replay_webhooks(text, timestamptz) to member, service, platform_admin;
