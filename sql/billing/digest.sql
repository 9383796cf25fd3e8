-- What an invoice rests on, and the digest of that and of all that is written on it. With both stored, verification can say what differs,
-- and not only that something does.

-- Of a period: what its events came to (a row a meter, version and payer, with the sum of their digests), the versions of the meters that
-- counted them, the weights of operations, who paid since when, the phases of the subscription, and by what means Stripe's invoice is made, if
-- that is what counts. Reads rollups and what is not rolled up yet, not all events.
create or replace function billing.facts_of(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns jsonb
language sql
stable
set search_path = ''
set timezone = 'UTC'
as $$
  with counted as materialized (
    select * from metering.digests(p_organization_id, p_period_start, p_period_end)
  )
  select jsonb_build_object(
    'events', (
      select coalesce(jsonb_agg(
        jsonb_build_object(
          'meter', c.meter_code, 'version', c.meter_version, 'billing_entity_id', c.billing_entity_id,
          'events', c.events, 'value', trim_scale(c.value), 'digest', c.digest
        )
        order by c.meter_code, c.meter_version, c.billing_entity_id
      ), '[]')
      from counted c
    ),
    'meter_versions', (
      select coalesce(jsonb_agg(to_jsonb(v) order by v.meter_code, v.version), '[]')
      from metering.meter_versions v
      where (v.meter_code, v.version) in (select c.meter_code, c.meter_version from counted c)
    ),
    'weights', (
      select coalesce(jsonb_agg(
        jsonb_build_object('operation', w.operation, 'effective_from', w.effective_from, 'weight', w.weight, 'own', w.organization_id is not null)
        order by w.operation, w.effective_from, w.organization_id nulls first
      ), '[]')
      from metering.operation_weights w
      where (w.organization_id is null or w.organization_id = p_organization_id)
        and w.effective_from < p_period_end
        and exists (
          select
          from metering.meter_versions v
          where v.value = 'weighted_units'
            and (v.meter_code, v.version) in (select c.meter_code, c.meter_version from counted c)
        )
    ),
    'attribution', (
      select jsonb_build_object('billing_user_id', o.billing_user_id, 'billing_start_at', o.billing_start_at)
      from tenancy.organizations o
      where o.id = p_organization_id
        and o.billing_start_at < p_period_end
    )
  )
    || billing.phases_of(p_organization_id, p_period_start, p_period_end)
    || coalesce(
      (
        select jsonb_build_object('invoice_mode', p.invoice_mode)
        from billing.billing_periods p
        where p.organization_id = p_organization_id
          and p.period_start = p_period_start
          and p.invoice_mode <> 'local'
      ),
      '{}'
    )
$$;

-- {"phases": […]}; {} where there is no subscription, so that facts of before subscriptions stay what they are.
create or replace function billing.phases_of(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select case
    when count(*) = 0 then '{}'
    else jsonb_build_object('phases', jsonb_agg(
      jsonb_build_object('starts_at', metering.time_text(f.starts_at), 'status', f.status, 'plan', f.plan_code)
        || case when f.fee_by_stripe then '{"fee_by_stripe": true}'::jsonb else '{}' end
      order by f.starts_at
    ))
  end
  from billing.subscription_phases f
  where f.organization_id = p_organization_id
    and f.starts_at < p_period_end
    and f.starts_at >= coalesce((select b.starts_at from billing.phase_at(p_organization_id, p_period_start) b), p_period_start)
$$;

-- p_invoice and p_lines as they are stored; what is generated, or comes after the digest, is left out. So is what is null, so that a column
-- that a later version adds changes no digest of before; an invoice's kind is what there was before there were statements.
create or replace function billing.digest_of(p_invoice billing.invoices, p_lines billing.invoice_lines[])
returns text
language sql
stable
set search_path = ''
set timezone = 'UTC'
as $$
  select encode(sha256(convert_to(
    jsonb_build_object(
      'invoice', billing.without_nulls(to_jsonb(p_invoice))
        - array['digest', 'issued_generation', 'issued_xid', 'billing_entity_type', 'billing_entity_id']
        - case p_invoice.kind when 'invoice' then 'kind' else '' end,
      'lines', (
        select coalesce(jsonb_agg(billing.without_nulls(to_jsonb(l)) - array['organization_id', 'invoice_id'] order by l.line_number), '[]')
        from unnest(p_lines) l
      )
    )::text,
    'UTF8'
  )), 'hex')
$$;

create or replace function billing.without_nulls(p_row jsonb)
returns jsonb
language sql
immutable
parallel safe
set search_path = ''
as $$ select coalesce(jsonb_object_agg(m.key, m.value), '{}') from jsonb_each(p_row) as m where m.value <> 'null' $$;

-- A transaction id that is above those of all that has been recorded by now, and at most as great as those of what is written after this
-- transaction.
create or replace function billing.next_xid()
returns xid8
language sql
volatile
set search_path = ''
as $$ select greatest((pg_current_xact_id()::text::numeric + 1)::text::xid8, pg_snapshot_xmax(pg_current_snapshot())) $$;

grant execute on function billing.phases_of(uuid, timestamptz, timestamptz), billing.facts_of(uuid, timestamptz, timestamptz),
  billing.digest_of(billing.invoices, billing.invoice_lines[]),
  billing.without_nulls(jsonb), billing.next_xid() to goldleaves_kernel;
