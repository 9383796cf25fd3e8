-- What the stack does every hour. Safe to call at any time, by several at once.
create or replace function ops.maintain()
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform metering.ensure_partitions(now() - interval '2 months', now() + interval '3 months');
  perform metering.forget_repeated_batches();
  perform billing.queue_alerts_of_time();
  perform notifications.prune_webhooks();
  perform stripe.prune_events();
  perform stripe.prune_refetches();
end;
$$;

alter function ops.maintain() owner to goldleaves_kernel;
grant execute on function ops.maintain() to sidecar;
