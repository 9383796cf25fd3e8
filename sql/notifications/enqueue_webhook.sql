-- A message to the provider's application, written in the transaction of what it tells of: it is sent if that is committed, and only then.
create or replace function notifications.enqueue_webhook(p_organization_id uuid, p_type text, p_payload jsonb)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into notifications.webhook_messages (organization_id, type, payload) values (p_organization_id, p_type, p_payload)
$$;

grant execute on function notifications.enqueue_webhook(uuid, text, jsonb) to goldleaves_kernel;
