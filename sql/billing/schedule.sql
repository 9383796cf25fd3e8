-- In which timezone, and on which day of the month, periods of an organization begin. A change counts from the next period on, whoever makes
-- it: the period of now is made before it, as it was, and the next one starts where that ends.
create or replace function billing.keep_current_period()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if new.billing_timezone <> old.billing_timezone
    and not exists (select from pg_catalog.pg_timezone_names z where z.name = new.billing_timezone)
  then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_TIMEZONE: %s is not a timezone', left(new.billing_timezone, 80)),
      hint = 'Use an IANA name, such as America/Los_Angeles.';
  end if;
  -- Who has none yet has nothing that could be billed twice.
  if exists (select from billing.billing_periods p where p.organization_id = old.id) then
    perform billing.ensure_periods(old.id, now(), now());
  end if;
  return new;
end;
$$;

create or replace function billing.set_billing_schedule(p_organization_id uuid, p_timezone text, p_anchor_day integer)
returns table (timezone text, anchor_day integer, effective_from timestamptz)
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if p_anchor_day not between 1 and 31 then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_ANCHOR_DAY: %s is not a day of the month', p_anchor_day),
      hint = 'Use 1 to 31. In shorter months 31 means the last day.';
  end if;
  update tenancy.organizations o
  set billing_timezone = coalesce(p_timezone, o.billing_timezone), billing_anchor_day = coalesce(p_anchor_day, o.billing_anchor_day)
  where o.id = p_organization_id;
  if not found then
    perform billing.raise_no_organization(p_organization_id);
  end if;

  return query
    select
      o.billing_timezone, o.billing_anchor_day::integer,
      coalesce(
        (select max(p.period_end) from billing.billing_periods p where p.organization_id = o.id),
        (select f.period_start from billing.find_period(o.id, now()) f)
      )
    from tenancy.organizations o
    where o.id = p_organization_id;
end;
$$;

alter function billing.keep_current_period() owner to goldleaves_kernel;
alter function billing.set_billing_schedule(uuid, text, integer) owner to goldleaves_kernel;
grant execute on function billing.set_billing_schedule(uuid, text, integer) to platform_admin;

create or replace trigger keep_current_period before update of billing_timezone, billing_anchor_day on tenancy.organizations
  for each row when (
    old.billing_timezone is distinct from new.billing_timezone or old.billing_anchor_day is distinct from new.billing_anchor_day
  ) execute function billing.keep_current_period();
