-- Stripe looks at meter events after it has taken them, and tells later what is wrong with some: by their identifiers, so that each report knows.
-- Such an event is of version 2 and may come without what it tells of: then Stripe is asked for it. It names a sample of the events, not
-- always all of them; the others are found by reconciliation.

create or replace function stripe.apply_meter_errors(p_event stripe.webhook_events, out outcome text, out message text)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_types jsonb := p_event.payload #> '{data,reason,error_types}';
  v_rejected bigint;
begin
  if jsonb_typeof(v_types) is distinct from 'array' then
    -- One that was asked for is not in the inbox, and there is no more to ask.
    if p_event.received_at is not null then
      perform stripe.ask_for('event', p_event.id);
    end if;
    outcome := 'applied';
    message := 'it does not say which events; Stripe is asked';
    return;
  end if;

  with errors as materialized (
    select distinct on (e.identifier) e.identifier, e.error
    from (
      select
        s.sample #>> '{request,identifier}' as identifier, concat_ws(': ', t.type ->> 'code', s.sample ->> 'error_message') as error
      from jsonb_array_elements(v_types) as t (type)
      cross join lateral jsonb_array_elements(
        case jsonb_typeof(t.type -> 'sample_errors') when 'array' then t.type -> 'sample_errors' else '[]' end
      ) as s (sample)
      -- One that it has already is no error: it was sent again, since the answer was lost.
      where t.type ->> 'code' is distinct from 'duplicate_meter_event'
    ) as e
    where e.identifier is not null
    order by e.identifier, e.error
  ),
  rejected as (
    update stripe.meter_event_reports r
    set
      status = case r.status when 'canceling' then 'canceled' else 'rejected' end,
      claimed_until = null,
      last_error = left(e.error, 500)
    from errors e
    where r.identifier = e.identifier
      and r.status in ('pending', 'acknowledged', 'uncertain', 'canceling')
    returning 1
  )
  select count(*) into v_rejected from rejected;
  outcome := 'applied';
  message := format('%s of our reports were rejected', v_rejected);
end;
$$;

grant execute on function stripe.apply_meter_errors(stripe.webhook_events) to goldleaves_kernel;
