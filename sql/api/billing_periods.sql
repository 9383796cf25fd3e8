-- Periods, and what the provider's staff does to them.
create view api.billing_periods with (security_invoker) as
select
  p.organization_id,
  p.period_start,
  p.period_end,
  p.timezone,
  (p.period_start at time zone p.timezone)::date as start_date,
  (p.period_end at time zone p.timezone)::date as end_date,
  p.status,
  p.finalized_at,
  case when y.user_id is null then 'organization' else 'user' end as billing_entity_type,
  coalesce(y.user_id, p.organization_id) as billing_entity_id,
  p.invoice_mode
from billing.billing_periods p
join tenancy.organizations o on o.id = p.organization_id
cross join lateral (
  select billing.payer(o.billing_user_id, o.billing_start_at, p.period_end - interval '1 microsecond') as user_id
) as y;

create trigger refuse_write instead of insert or update or delete on api.billing_periods
  for each row execute function billing.refuse_write();

comment on view api.billing_periods is 'Billing periods, half-open: period_start belongs to it, period_end to the next one.';
comment on column api.billing_periods.organization_id is 'Whose period it is.';
comment on column api.billing_periods.period_start is 'First moment of the period (UTC).';
comment on column api.billing_periods.period_end is 'First moment of the next period (UTC).';
comment on column api.billing_periods.timezone is 'IANA timezone in which the period begins and ends at midnight.';
comment on column api.billing_periods.finalized_at is 'When it was finalized (UTC); null until then.';
comment on column api.billing_periods.start_date is 'First day in the organization''s timezone: what usage_summary and finalize_period take. Never null.';
comment on column api.billing_periods.end_date is 'First day of the next period, in the organization''s timezone. Never null.';
comment on column api.billing_periods.status is
  'open; closing: it has ended, and what is late is still waited for; or finalized: nothing in it can change again.';
comment on column api.billing_periods.billing_entity_type is
  'Who pays when it ends: user, the person of a personal organization, or organization. Never null.';
comment on column api.billing_periods.billing_entity_id is
  'Id of who pays when it ends; a period in which an organization was converted is the organization''s. Never null.';
comment on column api.billing_periods.invoice_mode is
  'Whose invoice counts: local, ours; stripe_meters or stripe_items, Stripe''s, and ours is a statement. As it was when the period was made.';

grant select on api.billing_periods to member, platform_admin;

create function api.finalize_period(period_start date)
returns api.invoices
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_id uuid;
  v_invoice api.invoices;
begin
  perform tenancy.require_platform_admin();
  select i.id into v_id from billing.finalize_period(tenancy.current_org(), finalize_period.period_start) i;
  -- In a statement of its own, which sees what that one made.
  select i.* into v_invoice from api.invoices i where i.organization_id = tenancy.current_org() and i.id = v_id;
  return v_invoice;
end;
$$;

comment on function api.finalize_period(date) is $$Close a billing period and issue its invoices

For platform_admin. period_start is the first day of the period, in the timezone of the organization that X-Organization-ID
names. Nothing in the period can change afterwards. The period in which a personal organization was converted gets two invoices, the
user's and the organization's; the answer is the one of who pays at the period's end. Called again, it returns the same one.
Periods are closed in their order; what lies before the first one that was closed is closed with it, and has no invoice.

Errors: ROLE_REQUIRED (403), ORGANIZATION_REQUIRED, PERIOD_REQUIRED (400), ORGANIZATION_NOT_FOUND, PERIOD_NOT_FOUND (404),
PERIOD_NOT_ENDED, PERIOD_OUT_OF_ORDER (409), BILLING_PERIOD_LOCKED (409) when it was closed without an invoice, PERIOD_BUSY (503).$$;

create function api.recalculate_period(period_start date)
returns table (meter text, unit text, events bigint, quantity numeric, unit_amount_cents numeric, amount_cents numeric)
language plpgsql
stable
set search_path = ''
as $$
begin
  perform tenancy.require_platform_admin();
  return query select * from billing.recalculate_period(tenancy.current_org(), recalculate_period.period_start);
end;
$$;

comment on function api.recalculate_period(date) is $$Rate an open period anew, a row a meter

For platform_admin. It stores nothing: it shows what closing the period now would bill. period_start is the first day of the
period, in the timezone of the organization that X-Organization-ID names.

- meter: Code of the meter; the name of the event when no meter counts it. Never null.
- unit: What quantity is in; null when no meter counts the event.
- events: How many events there are. Never null.
- quantity: In unit: the number of events or the sum of their quantities, as the meter says. Never null.
- unit_amount_cents: Price of one unit, in minor units of the organization's currency, perhaps a fraction; null when it is not billed.
- amount_cents: quantity times unit_amount_cents, rounded once a payer, half away from zero, to whole minor units; 0 when it is not billed. Never null.

Errors: ROLE_REQUIRED (403), ORGANIZATION_REQUIRED (400), ORGANIZATION_NOT_FOUND, PERIOD_NOT_FOUND (404),
BILLING_PERIOD_LOCKED (409) when the period is finalized.$$;

create function api.set_billing_schedule(billing_timezone text default null, billing_anchor_day integer default null)
returns table (timezone text, anchor_day integer, effective_from timestamptz)
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('chooses when the billing periods of an organization begin');
  perform tenancy.require_organization();
  return query
    select * from billing.set_billing_schedule(
      tenancy.current_org(), set_billing_schedule.billing_timezone, set_billing_schedule.billing_anchor_day
    );
end;
$$;

comment on function api.set_billing_schedule(text, integer) is $$Choose when the billing periods of an organization begin

For platform_admin. billing_timezone is an IANA name, billing_anchor_day a day of the month from 1 to 31 (in shorter months 31 means the last
day); what is left out stays as it is. Periods that are there keep their bounds: the change counts from the next one on, which starts where
the last one ends, and is the only one that is shorter than others, or up to two days longer.

- timezone: IANA timezone in which periods begin and end from then on. Never null.
- anchor_day: Day of the month on which they begin. Never null.
- effective_from: First moment that it counts for (UTC). Never null.

Errors: ROLE_REQUIRED (403), ORGANIZATION_REQUIRED, INVALID_TIMEZONE, INVALID_ANCHOR_DAY (400), ORGANIZATION_NOT_FOUND (404).$$;

grant execute on function api.finalize_period(date), api.recalculate_period(date), api.set_billing_schedule(text, integer)
  to member, service, platform_admin;
