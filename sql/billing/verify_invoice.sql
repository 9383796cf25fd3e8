-- Proving an invoice. What is stored is compared with its own digest and with the audit log, and then everything is derived anew: what its
-- events come to, by the events themselves; the versions of meters, weights and prices that it was made by; its lines and totals. Where something
-- differs, the hours and events are named. Returns a row a difference, none: the invoice is proved. expected: what was issued or recorded;
-- found: what there is now, or what comes out of it. detail: a sentence for people.

-- For `goldleaves billing verify`, which runs as the migrator, a member of the kernel, and for a DBA at psql.
create or replace function billing.verify_invoice(p_organization_id uuid, p_invoice_id uuid)
returns table (what text, expected text, found text, detail text)
language plpgsql
stable
security definer
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_invoice billing.invoices;
  v_lines billing.invoice_lines[];
  v_timezone text;
  v_anew metering.usage_rollups[];
  v_differing jsonb;
  v_measure_from text := coalesce(current_setting('goldleaves.measure_from', true), '');
  v_of_rows jsonb;
  v_of_facts jsonb;
begin
  select * into v_invoice from billing.invoices i where i.organization_id = p_organization_id and i.id = p_invoice_id;
  if v_invoice.id is null then
    perform billing.raise_no_invoice(p_invoice_id::text);
  end if;
  v_lines := array(
    select l
    from billing.invoice_lines l
    where l.organization_id = p_organization_id
      and l.invoice_id = p_invoice_id
    order by l.line_number
  );
  v_timezone := coalesce(v_invoice.timezone, (
    select p.timezone
    from billing.billing_periods p
    where p.organization_id = p_organization_id
      and p.period_start = v_invoice.period_start
  ), 'UTC');

  v_of_rows := (select coalesce(jsonb_agg(to_jsonb(d)), '[]') from billing.differences_of_rows(v_invoice, v_lines) d);

  -- The one pass over the events. Rollups that are what it says are proved, and what follows may read them.
  v_anew := array(
    select a from metering.counted_anew(p_organization_id, v_invoice.period_start, v_invoice.period_end, v_timezone) a
  );
  v_differing := (
    select coalesce(jsonb_agg(to_jsonb(d)), '[]')
    from metering.differing_rollups(p_organization_id, v_invoice.period_start, v_invoice.period_end, v_anew) d
  );
  v_of_facts := (select coalesce(jsonb_agg(to_jsonb(d)), '[]') from billing.differences_of_facts(v_invoice, v_anew) d);

  -- The cause first, and what follows from it last.
  if v_of_rows || v_of_facts || v_differing <> '[]' then
    return query select * from billing.events_that_differ(v_invoice, v_differing, v_timezone);
  end if;
  return query select * from billing.differences_of_hours(v_invoice, v_anew, v_differing);
  return query
    select d.*
    from jsonb_to_recordset(v_of_facts || v_of_rows) as d (what text, expected text, found text, detail text);
  return query select * from billing.differences_of_ledgers(p_organization_id);

  if v_differing <> '[]' then
    perform set_config('goldleaves.measure_from', 'events', true);
  end if;
  if v_invoice.digest is null then
    return query select * from billing.differences_of_old_lines(v_invoice, v_lines);
  else
    return query select * from billing.differences_of_draft(v_invoice, v_lines, v_timezone);
  end if;
  perform set_config('goldleaves.measure_from', v_measure_from, true);
end;
$$;

-- For psql: select * from billing.verify_invoice('…');
create or replace function billing.verify_invoice(p_invoice_id uuid)
returns table (what text, expected text, found text, detail text)
language sql
stable
security definer
set search_path = ''
as $$
  select v.*
  from (select (select i.organization_id from billing.invoices i where i.id = p_invoice_id) as organization_id) as o
  cross join lateral billing.verify_invoice(o.organization_id, p_invoice_id) v
$$;

create or replace function billing.raise_no_invoice(p_invoice_id text)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT404',
    message = format('INVOICE_NOT_FOUND: there is no invoice %s', coalesce(left(p_invoice_id, 80), 'null')),
    hint = 'GET /invoices lists them; id is what is asked for here, not the number.';
end;
$$;

-- What schema api answers. Members: their own organization's; the provider's staff: any.
create or replace function billing.verdict_of_invoice(p_invoice_id text)
returns jsonb
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_invoice billing.invoices;
  v_differences jsonb;
begin
  perform tenancy.require_organization();
  perform tenancy.require_role_in('owner', 'admin', 'billing');
  select * into v_invoice
  from billing.invoices i
  where i.organization_id = tenancy.current_org()
    and i.id::text = lower(p_invoice_id);
  if v_invoice.id is null then
    perform billing.raise_no_invoice(p_invoice_id);
  end if;
  select coalesce(jsonb_agg(to_jsonb(v)), '[]') into v_differences
  from billing.verify_invoice(v_invoice.organization_id, v_invoice.id) v;
  return jsonb_build_object(
    'verified', v_differences = '[]',
    'invoice', v_invoice.id,
    'number', v_invoice.number,
    'digest', v_invoice.digest,
    'events', (select sum((e ->> 'events')::bigint) from jsonb_array_elements(v_invoice.facts -> 'events') e),
    'differences', v_differences
  );
end;
$$;

alter function billing.verify_invoice(uuid, uuid) owner to goldleaves_kernel;
alter function billing.verify_invoice(uuid) owner to goldleaves_kernel;
alter function billing.verdict_of_invoice(text) owner to goldleaves_kernel;
grant execute on function billing.raise_no_invoice(text) to goldleaves_kernel;
grant execute on function billing.verdict_of_invoice(text) to member, platform_admin;
