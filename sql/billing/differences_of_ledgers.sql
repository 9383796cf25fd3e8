-- What is beside invoices, compared with what the audit log told of it when it was written: payments, refunds, credit notes and the balance;
-- and what the next invoices will be made by: terms, plans, prices, periods, and who has which.

create or replace function billing.ledger_names()
returns text[]
language sql
immutable
parallel safe
as $$ select array['payment', 'refund', 'credit_note', 'credit_note_line', 'balance_entry'] $$;

-- All of the organization's: what one invoice has to be paid hangs on the notes and payments of others by the balance.
create or replace function billing.differences_of_ledgers(p_organization_id uuid)
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  select 'ledger', d.expected, d.found, d.detail
  from audit.differences(billing.ledger_names(), p_organization_id, billing.ledger_names(), billing.ledger_names()) d
$$;

-- For `goldleaves billing verify`: all that no single invoice tells, of one organization and the platform's catalog, or of all.
create or replace function billing.differences_beside_invoices(p_organization_id uuid default null)
returns table (organization_id uuid, what text, expected text, found text, detail text)
language sql
stable
security definer
set search_path = ''
set timezone = 'UTC'
as $$
  with chains as (
    select p_organization_id as organization_id
    union
    select audit.platform() where p_organization_id is not null
  )
  select
    d.organization_id,
    case
      when d.target_type = any (billing.ledger_names()) then 'ledger'
      when d.target_type = 'billing_period' then 'period'
      else replace(d.target_type, '_', ' ')
    end,
    d.expected, d.found, d.detail
  from chains c
  cross join lateral audit.differences(
    billing.ledger_names() || array[
      'invoice', 'billing_period', 'organization', 'billing_terms', 'billing_profile', 'plan', 'plan_feature', 'price', 'meter', 'operation_weight'
    ],
    c.organization_id, billing.ledger_names() || array['invoice'], billing.ledger_names() || array['billing_terms']
  ) d
  union all
  -- Those that staff and the tests of a deployment make are all told; the first ones of a database came with it.
  select audit.platform(), 'price', null, 'there', format('the audit log does not know price %s: it was not made as others are', p.id)
  from billing.prices p
  where p.created_at > (select min(l.recorded_at) from audit.log l where l.organization_id = audit.platform() and l.target_type = 'price')
    and not exists (
      select from audit.log l
      where l.organization_id = audit.platform() and l.target_type = 'price' and l.target_id in (
        p.id::text, concat_ws(',', p.meter_code, p.currency, to_jsonb(p) ->> 'effective_from')
      )
    )
  union all
  -- A chain that is gone as a whole has no gap.
  select o.id, 'organization', null, 'there', format('the audit log does not know organization %s: what it told of it is gone', o.id)
  from tenancy.organizations o
  where (p_organization_id is null or o.id = p_organization_id)
    and o.created_at > (select min(l.recorded_at) from audit.log l where l.organization_id = audit.platform())
    and not exists (
      select
      from audit.log l
      where l.organization_id = o.id
        and l.target_type = 'organization'
        and l.action = 'organization.created'
    )
  union all
  -- A meter is told of, its versions are not: the last one is what the meter is.
  select
    audit.platform(), 'meter', m.counts::text, v.counts::text, format('the last version of meter %s is not what the meter is', m.code)
  from (
    select
      m.code,
      jsonb_build_object(
        'version', m.version, 'event_name', m.event_name, 'value', m.value, 'filter', m.filter, 'group_by', m.group_by,
        'max_groups', m.max_groups, 'allow_negative', m.allow_negative, 'counts', m.deleted_at is null
      ) as counts
    from metering.meters m
  ) as m
  left join (
    select distinct on (v.meter_code)
      v.meter_code,
      to_jsonb(v) - array['meter_code', 'effective_from', 'created_at'] as counts
    from metering.meter_versions v
    order by v.meter_code, v.version desc
  ) as v on v.meter_code = m.code
  where m.counts is distinct from v.counts
  union all
  -- What lies before the first period that was closed is made as a closed one, and nothing is told of it.
  select
    p.organization_id, 'period', null, 'finalized',
    format('the audit log does not know that the period of %s was finalized: nobody closed it', metering.time_text(p.period_start))
  from billing.billing_periods p
  where (p_organization_id is null or p.organization_id = p_organization_id)
    and p.status = 'finalized'
    and p.finalized_at > (select min(l.recorded_at) from audit.log l where l.organization_id = p.organization_id)
    and not exists (
      select
      from audit.log l
      where l.organization_id = p.organization_id
        and l.target_type = 'billing_period'
        and l.after ->> 'status' = 'finalized'
        and l.target_id::timestamptz >= p.period_start
        and (
          l.target_id::timestamptz = p.period_start
          or not exists (
            select
            from audit.log e
            where e.organization_id = p.organization_id
              and e.target_type = 'billing_period'
              and e.after ->> 'status' = 'finalized'
              and e.target_id::timestamptz < p.period_start
          )
        )
    )
$$;

alter function billing.differences_beside_invoices(uuid) owner to goldleaves_kernel;
grant execute on function billing.ledger_names(), billing.differences_of_ledgers(uuid) to goldleaves_kernel;
