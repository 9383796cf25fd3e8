-- The moment from which an organization pays for itself. Takes the period lock alone, so whoever decides who pays for an event does so
-- either before (and its event lies before that moment) or after the caller has committed (and sees it). The caller stores it as
-- organizations.billing_start_at, and locks the organization's row only after this: writers of usage lock in that order too.

-- Events may lie some minutes ahead. Those that are recorded keep their payer, so the moment comes after the last of them.
create or replace function billing.start_billing(p_organization_id uuid)
returns timestamptz
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_now timestamptz;
  v_last timestamptz;
begin
  perform billing.take_period_lock(p_organization_id);
  v_now := clock_timestamp();

  select max(e.occurred_at) into v_last
  from metering.usage_events e
  where e.organization_id = p_organization_id
    and e.occurred_at >= v_now;
  return coalesce(v_last + interval '1 microsecond', v_now);
end;
$$;

grant execute on function billing.start_billing(uuid) to goldleaves_kernel;
