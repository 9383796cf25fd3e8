-- What the sidecar fetched from Stripe, because events alone did not say it. It is stored as an event of our own making, so that what follows from
-- it follows as from all others, in whatever order they come.

-- p_asked: stripe.refetches.asked as it was when the sidecar asked Stripe: what was asked for since then is fetched once more. p_object: what came,
-- of an invoice payment with its invoice in it; an event of version 2 as a whole. p_fetched_at: by Stripe's clock. Returns the outcome; null:
-- nothing is made of it.
create or replace function stripe.receive_fetched(
  p_object_type text, p_object_id text, p_asked bigint, p_object jsonb, p_fetched_at timestamptz
)
returns text
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_at timestamptz := date_trunc('second', p_fetched_at);
  v_type text := case p_object ->> 'object'
    when 'subscription' then 'customer.subscription.snapshot'
    when 'invoice' then 'invoice.snapshot'
    when 'invoice_payment' then 'invoice_payment.paid'
  end;
  v_event stripe.webhook_events;
  v_outcome text;
begin
  if p_object_type = 'event' then
    -- The webhook was thin: now the whole of it is known.
    perform stripe.lock_customer((select e.customer_id from stripe.webhook_events e where e.id = p_object_id));
    update stripe.webhook_events e
    set payload = p_object
    where e.id = p_object_id
      and p_object ->> 'id' = p_object_id;
    if found then
      v_outcome := (stripe.settle(stripe.read_again(p_object_id), true)).outcome;
    end if;
  elsif v_type is not null then
    v_event := stripe.parse_event(jsonb_build_object(
      -- The same object of the same second is the same event. There may be several payments of one invoice.
      'id', format('fetch_%s_%s', p_object ->> 'id', extract(epoch from v_at)::bigint),
      'type', v_type, 'created', extract(epoch from v_at)::bigint, 'livemode', p_object -> 'livemode',
      'data', jsonb_build_object('object', p_object)
    ));
    -- In the mode that it was fetched in by our own key.
    v_outcome := (stripe.receive_event(v_event, v_event.is_live, true)).outcome;
  end if;
  delete from stripe.refetches r
  where r.object_type = p_object_type
    and r.object_id = p_object_id
    and r.asked = p_asked;
  return v_outcome;
end;
$$;

alter function stripe.receive_fetched(text, text, bigint, jsonb, timestamptz) owner to goldleaves_kernel;
grant execute on function stripe.receive_fetched(text, text, bigint, jsonb, timestamptz) to sidecar;
