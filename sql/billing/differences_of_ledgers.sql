-- What is beside invoices, compared with what the audit log told of it when it was written: payments, refunds, credit notes and the balance;
-- and what the next invoices will be made by: terms, plans, prices, periods, subscriptions, and who has which.

create or replace function billing.ledger_names()
returns text[]
language sql
immutable
parallel safe
as $$ select array['payment', 'refund', 'credit_note', 'credit_note_line', 'balance_entry'] $$;

-- Entries that contradict each other or their invoice: somebody switched off what refuses such, and perhaps not what tells of it.
create or replace function billing.faults_of_ledgers(p_organization_id uuid)
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  select 'ledger', c.expected::text, c.found::text, c.detail
  from (
    select
      coalesce(c.to_balance_cents, - r.amount_cents), b.amount_cents,
      format('balance entry %s of kind %s is not what it comes from', b.id, b.kind)
    from billing.balance_entries b
    left join billing.credit_notes c on c.organization_id = b.organization_id and c.id = b.credit_note_id
    left join billing.refunds r on r.organization_id = b.organization_id and r.id = b.refund_id
    where b.organization_id = p_organization_id
      and b.kind in ('credit_note', 'refund')
    union all
    select 0, sum(b.amount_cents), format('the balance of %s is below zero', b.billing_entity_id)
    from billing.balance_entries b
    where b.organization_id = p_organization_id
    group by b.billing_entity_id, b.currency
    having sum(b.amount_cents) < 0
    union all
    select c.to_balance_cents, 0, format('credit note %s is not on the balance', c.number)
    from billing.credit_notes c
    where c.organization_id = p_organization_id
      and c.to_balance_cents > 0
      and not exists (
        select from billing.balance_entries b
        where b.organization_id = c.organization_id and b.credit_note_id = c.id and b.kind = 'credit_note'
      )
    union all
    select c.subtotal_cents, coalesce(l.amount_cents, 0), format('credit note %s is not the sum of its lines', c.number)
    from billing.credit_notes c
    left join (
      select l.credit_note_id, sum(l.amount_cents) as amount_cents
      from billing.credit_note_lines l
      where l.organization_id = p_organization_id
      group by 1
    ) as l on l.credit_note_id = c.id
    where c.organization_id = p_organization_id
    union all
    select
      coalesce(i.amount_due_cents, greatest(i.total_cents, 0)), s.paid_cents + c.credited_cents,
      format('invoice %s: more was paid and credited than was due', i.number)
    from billing.invoices i
    cross join lateral billing.settlement(i.organization_id, i.id, i.total_cents, i.amount_due_cents) s
    cross join lateral (
      select coalesce(sum(c.total_cents - c.to_balance_cents), 0) as credited_cents
      from billing.credit_notes c
      where c.organization_id = i.organization_id and c.invoice_id = i.id
    ) as c
    where i.organization_id = p_organization_id
      and s.paid_cents + c.credited_cents > coalesce(i.amount_due_cents, greatest(i.total_cents, 0))
  ) as c (expected, found, detail)
  where c.expected is distinct from c.found
$$;

-- All of the organization's: what one invoice has to be paid hangs on the notes and payments of others by the balance.
create or replace function billing.differences_of_ledgers(p_organization_id uuid)
returns table (what text, expected text, found text, detail text)
language sql
stable
set search_path = ''
as $$
  select 'ledger', d.expected, d.found, d.detail
  from audit.differences(billing.ledger_names(), p_organization_id, billing.ledger_names(), billing.ledger_names()) d
  union all
  select * from billing.faults_of_ledgers(p_organization_id)
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
      'invoice', 'billing_period', 'organization', 'billing_terms', 'billing_profile', 'plan', 'plan_feature', 'price', 'meter', 'operation_weight',
      'subscription', 'subscription_phase', 'entitlement_override'
    ],
    c.organization_id, billing.ledger_names() || array['invoice'],
    billing.ledger_names() || array['billing_terms', 'subscription', 'subscription_phase', 'entitlement_override']
  ) d
  union all
  select o.id, f.what, f.expected, f.found, f.detail
  from tenancy.organizations o
  cross join lateral billing.faults_of_ledgers(o.id) f
  where p_organization_id is null or o.id = p_organization_id
  union all
  -- The first prices of a database came with it, and those before the audit log.
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
  -- Those that are older than ids are told of by meter, currency and moment.
  select
    audit.platform(), 'price', t.unit_amount_cents::text, p.unit_amount_cents::text,
    format('price %s is not what the audit log (entry %s) tells', t.target_id, t.position)
  from (
    select distinct on (l.target_id)
      l.target_id, l.position, l.action, (l.after ->> 'unit_amount_cents')::numeric as unit_amount_cents
    from audit.log l
    where l.organization_id = audit.platform()
      and l.target_type = 'price'
      and l.target_id like '%,%,%'
    order by l.target_id, l.position desc
  ) as t
  left join billing.prices p
    on p.plan_code is null and p.dimension is null
    and concat_ws(',', p.meter_code, p.currency, to_jsonb(p) ->> 'effective_from') = t.target_id
    and p.unit_amount_cents = t.unit_amount_cents
  where t.action <> 'price.removed'
    and t.unit_amount_cents is not null
    and p.id is null
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
grant execute on function billing.ledger_names(), billing.faults_of_ledgers(uuid), billing.differences_of_ledgers(uuid) to goldleaves_kernel;
