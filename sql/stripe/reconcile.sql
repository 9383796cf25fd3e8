-- Reconciliation: what we recorded and reported of a billing period, against what Stripe says it has. Two steps, since Stripe is asked in between:
-- what to ask it, and what to make of its answer. Both are read at other moments than Stripe's own, so what is on its way is told apart from what
-- is wrong: explained is what of the difference is as it should be, drift is the rest.
--
-- Drift = theirs + explained - ours: below zero Stripe lacks something, above it has too much.

-- How long Stripe may take until its sums have what it has taken in.
create or replace function stripe.summaries_lag()
returns interval
language sql
immutable
parallel safe
as $$ select interval '15 minutes' $$;

-- How long it may take until there are reports of what was recorded, or of what lay there when a customer or meter came.
create or replace function stripe.reports_lag()
returns interval
language sql
immutable
parallel safe
as $$ select interval '2 hours' $$;

-- The periods around a moment (null: now) in which Stripe's invoice counts, a page of organizations after another. p_organization: slug or id.
create or replace function stripe.periods_at_stripe(p_at timestamptz, p_organization text, p_after uuid, p_most integer)
returns table (organization_id uuid, period_start timestamptz)
language sql
stable
security definer
set search_path = ''
as $$
  select p.organization_id, p.period_start
  from billing.billing_periods p
  join tenancy.organizations o on o.id = p.organization_id
  where p.invoice_mode <> 'local'
    -- What belongs to no organization is nobody's to pay.
    and p.organization_id <> audit.platform()
    and p.period_start <= coalesce(p_at, now())
    and p.period_end > coalesce(p_at, now())
    and (p_organization is null or p_organization in (o.slug, o.id::text))
    and (p_after is null or p.organization_id > p_after)
  order by p.organization_id
  limit p_most
$$;

-- For the sidecar: some of the current and previous periods that nobody has reconciled for a day. Who claims one has it alone until the lease is
-- over.
create or replace function stripe.claim_reconciliations(p_most integer, p_lease interval)
returns table (organization_id uuid, period_start timestamptz)
language sql
volatile
security definer
set search_path = ''
as $$
  with due as materialized (
    select p.organization_id, p.period_start
    from billing.billing_periods p
    left join stripe.reconciled_periods r on r.organization_id = p.organization_id and r.period_start = p.period_start
    where p.invoice_mode <> 'local'
      and p.organization_id <> audit.platform()
      and p.period_start <= now()
      and p.period_end > now() - interval '32 days'
      and (r.checked_at is null or r.checked_at < now() - interval '1 day')
      and (r.claimed_until is null or r.claimed_until < clock_timestamp())
    order by r.checked_at nulls first, p.organization_id
    limit p_most
  )
  insert into stripe.reconciled_periods as r (organization_id, period_start, claimed_until)
  select d.organization_id, d.period_start, clock_timestamp() + p_lease
  from due d
  order by d.organization_id, d.period_start
  on conflict (organization_id, period_start) do update
  set claimed_until = excluded.claimed_until
  where r.claimed_until < clock_timestamp()
  returning r.organization_id, r.period_start
$$;

-- Stripe's clock of sums goes by minutes.
create or replace function stripe.minute_of(p_at timestamptz, p_up boolean default false)
returns bigint
language sql
immutable
parallel safe
as $$
  select case when p_up then ceil(extract(epoch from p_at) / 60) else floor(extract(epoch from p_at) / 60) end::bigint * 60
$$;

-- What Stripe is to be asked of a period: {"organization", "period_start", "period_end", "invoice_mode", "customers": […], "usage":
-- [{"customer_id", "meter_code", "meter_id", "ranges": [[from, until], …]}, …], "invoices_since", "invoices_until", "lines_since",
-- "lines_until", "items"}, times as Stripe has them; items: how many amounts of it were to be sent. Ranges are the period itself, and where
-- reports of it were sent under other times, since Stripe takes none of long ago. Null: there is no such period.
create or replace function stripe.reconciliation_question(p_organization_id uuid, p_period_start timestamptz)
returns jsonb
language sql
stable
security definer
set search_path = ''
as $$
  with period as materialized (
    select p.* from billing.billing_periods p where p.organization_id = p_organization_id and p.period_start = p_period_start
  ),
  reports as materialized (
    select r.customer_id, r.meter_code, r.happened_at
    from stripe.meter_event_reports r
    where r.organization_id = p_organization_id
      and r.period_start = p_period_start
      and r.happened_at is not null
  ),
  customers as materialized (
    select c.id from stripe.customers c where c.organization_id = p_organization_id and c.deleted_at is null
    union
    select r.customer_id from reports r
  ),
  asked as (
    select
      c.id as customer_id, m.meter_code, m.id as meter_id,
      jsonb_build_array(jsonb_build_array(stripe.minute_of(p.period_start), stripe.minute_of(p.period_end, true)))
        || coalesce((
          select jsonb_agg(jsonb_build_array(o.first, o.last) order by o.first)
          from (
            select stripe.minute_of(min(r.happened_at)) as first, stripe.minute_of(max(r.happened_at)) + 60 as last
            from reports r
            where r.customer_id = c.id
              and r.meter_code = m.meter_code
              and (r.happened_at < p.period_start or r.happened_at >= p.period_end)
            group by r.happened_at >= p.period_end
          ) as o
        ), '[]') as ranges
    from period p
    cross join customers c
    cross join stripe.meters m
    where p.invoice_mode = 'stripe_meters'
  )
  select jsonb_build_object(
    'organization', o.slug, 'period_start', p.period_start, 'period_end', p.period_end, 'invoice_mode', p.invoice_mode,
    'customers', (select coalesce(jsonb_agg(c.id order by c.id), '[]') from customers c),
    'usage', (select coalesce(jsonb_agg(to_jsonb(a) order by a.customer_id, a.meter_code), '[]') from asked a),
    -- What is charged of a period by usage is charged after it.
    'invoices_since', extract(epoch from p.period_start - interval '3 days')::bigint,
    'invoices_until', extract(epoch from p.period_end + interval '35 days')::bigint,
    'lines_since', extract(epoch from p.period_start)::bigint, 'lines_until', extract(epoch from p.period_end)::bigint,
    'items', (select count(*) from stripe.invoice_items i where i.organization_id = p.organization_id and i.period_start = p.period_start)
  )
  from period p
  join tenancy.organizations o on o.id = p.organization_id
$$;

-- What was recorded of each meter in a period, in its units, as reports are made of it: with what came late for earlier ones.
create or replace function stripe.recorded_usage(p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz)
returns table (meter_code text, quantity numeric)
language sql
stable
set search_path = ''
as $$
  select
    m.code,
    case
      when m.aggregation in ('max', 'min', 'latest') and not m.allow_negative then greatest(u.value, 0)
      else u.value
    end / metering.value_of_unit(m.aggregation, m.unit_size)
  from metering.meters m
  join (
    select u.meter_code, false as is_over_time, u.quantity as value
    from metering.measure(p_organization_id, array[p_period_start, p_period_end], p_as_values => true, p_together => true) u
    where u.metered
    union all
    -- A level is the sum of what each of its payers has.
    select u.meter_code, true, sum(u.quantity)
    from metering.measure(p_organization_id, array[p_period_start, p_period_end], p_as_values => true) u
    where u.metered
      and exists (select from metering.meters t where t.aggregation = 'weighted_sum' and t.deleted_at is null)
    group by 1
  ) as u on u.meter_code = m.code and u.is_over_time = (m.aggregation = 'weighted_sum')
$$;

-- 12 and 1.5, as people read them.
create or replace function stripe.units(p_quantity numeric)
returns text
language sql
immutable
parallel safe
as $$ select pg_catalog.trim_scale(pg_catalog.round(pg_catalog.abs(p_quantity), 6))::text $$;

-- What a report that Stripe did not take says of it, if there are several: the last one.
create or replace function stripe.last_error_of(p_organization_id uuid, p_meter_code text, p_period_start timestamptz, p_status text)
returns text
language sql
stable
set search_path = ''
as $$
  select coalesce(r.last_error, 'it did not say why')
  from stripe.meter_event_reports r
  where r.organization_id = p_organization_id
    and r.meter_code = p_meter_code
    and r.period_start = p_period_start
    and r.status = p_status
  order by r.bucket_start desc, r.sequence desc
  limit 1
$$;

-- p_asked: of the answer, what was asked of usage, each with value, or an error where Stripe did not say.
create or replace function stripe.reconcile_usage(p_period billing.billing_periods, p_asked jsonb)
returns setof stripe.reconciliations
language plpgsql
stable
set search_path = ''
as $$
declare
  v_meter record;
  v_row stripe.reconciliations;
  v_causes text[];
  v_reported numeric;
  v_unreported numeric;
  v_excess numeric;
  v_part numeric;
  v_is_linked boolean := exists (
    select from stripe.customers c where c.organization_id = p_period.organization_id and c.deleted_at is null
  );
begin
  for v_meter in
    with recorded as materialized (
      select u.* from stripe.recorded_usage(p_period.organization_id, p_period.period_start, p_period.period_end) u
    ),
    reports as materialized (
      select
        r.meter_code,
        sum(r.quantity) filter (where r.status = 'acknowledged') as acknowledged,
        sum(r.quantity) filter (where r.status = 'canceling') as canceling,
        sum(r.quantity) filter (where r.status = 'pending') as pending,
        sum(r.quantity) filter (where r.status = 'rejected') as rejected,
        sum(r.quantity) filter (where r.status = 'uncertain') as uncertain,
        sum(r.quantity) filter (where r.status = 'acknowledged' and r.acknowledged_at > now() - stripe.summaries_lag()) as fresh,
        sum(r.quantity) filter (
          where r.status = 'canceled' and r.acknowledged_at is not null and r.next_attempt_at > now() - stripe.summaries_lag()
        ) as canceled,
        sum(r.quantity) filter (where r.status = 'pending' and r.first_sent_at is not null) as tried
      from stripe.meter_event_reports r
      where r.organization_id = p_period.organization_id
        and r.period_start = p_period.period_start
      group by 1
    ),
    asked as materialized (
      select a.*
      from jsonb_to_recordset(p_asked) as a (customer_id text, meter_code text, ranges jsonb, value numeric, error text)
    ),
    theirs as materialized (
      select
        a.meter_code, bool_or(a.value is null) as is_unknown, max(a.error) as error,
        sum(
          a.value - coalesce((
            -- Of other periods, sent under times that were asked for.
            select sum(r.quantity)
            from stripe.meter_event_reports r
            where r.organization_id = p_period.organization_id
              and r.meter_code = a.meter_code
              and r.customer_id = a.customer_id
              and r.period_start <> p_period.period_start
              and r.status in ('acknowledged', 'canceling')
              and exists (
                select
                from jsonb_array_elements(a.ranges) g
                where r.happened_at >= to_timestamp((g.value ->> 0)::bigint)
                  and r.happened_at < to_timestamp((g.value ->> 1)::bigint)
              )
          ), 0)
        ) as quantity
      from asked a
      group by 1
    )
    select
      m.code, m.aggregation, s.id as stripe_id, s.created_at as registered_at,
      trim_scale(round(coalesce(d.quantity, 0), 6)) as recorded, coalesce(r.acknowledged, 0) as acknowledged, coalesce(r.canceling, 0) as canceling,
      coalesce(r.pending, 0) as pending, coalesce(r.rejected, 0) as rejected, coalesce(r.uncertain, 0) as uncertain,
      coalesce(r.fresh, 0) as fresh, coalesce(r.canceled, 0) as canceled, coalesce(r.tried, 0) as tried,
      t.quantity as theirs, coalesce(t.is_unknown, true) as is_unknown, t.error,
      -- Thirds of a unit do not end.
      trim_scale(round(coalesce(k.carried, 0) / u.value_of_unit, 6)) as carried,
      trim_scale(round(coalesce(k.passed_on, 0) / u.value_of_unit, 6)) as passed_on,
      trim_scale(round(coalesce(k.credited, 0) / u.value_of_unit, 6)) as credited,
      exists (
        select
        from billing.prices p
        where p.meter_code = m.code
          and p.model <> 'none'
          and p.effective_from < p_period.period_end
      ) as is_priced
    from metering.meters m
    cross join lateral (select metering.value_of_unit(m.aggregation, m.unit_size)) as u (value_of_unit)
    left join stripe.meters s on s.meter_code = m.code
    left join recorded d on d.meter_code = m.code
    left join reports r on r.meter_code = m.code
    left join theirs t on t.meter_code = m.code
    left join stripe.report_periods k
      on k.organization_id = p_period.organization_id and k.meter_code = m.code and k.period_start = p_period.period_start
    where d.quantity <> 0 or r.meter_code is not null or t.quantity <> 0
    order by m.code
  loop
    -- What has no price costs nothing, at Stripe neither: unless it has been reported.
    continue when v_meter.stripe_id is null and not v_meter.is_priced;
    v_causes := '{}';
    -- What is canceling is taken back already, and counts again only if Stripe will not do it.
    v_reported := v_meter.acknowledged + v_meter.pending + v_meter.rejected + v_meter.uncertain;
    v_row := null;
    v_row.organization_id := p_period.organization_id;
    v_row.period_start := p_period.period_start;
    v_row.kind := 'usage';
    v_row.subject := v_meter.code;
    v_row.ours := v_meter.recorded;
    v_row.theirs := case when not v_meter.is_unknown then v_meter.theirs end;
    v_row.checked_at := clock_timestamp();
    -- Where Stripe does not say, it counts as having what it has acknowledged.
    v_excess := coalesce(v_row.theirs - v_meter.acknowledged - v_meter.canceling, 0);
    v_row.explained := 0;

    -- Less than we sent.
    if v_excess < 0 then
      v_part := least(-v_excess, v_meter.fresh);
      if v_part > 0 then
        v_row.explained := v_row.explained + v_part;
        v_causes := v_causes || format('not arrived at Stripe yet (%s): its sums lag behind', stripe.units(v_part));
      end if;
      if -v_excess > v_part then
        v_causes := v_causes || format('lost at Stripe (%s): it has acknowledged them, and does not count them', stripe.units(-v_excess - v_part));
      end if;
    -- More: perhaps what nobody has heard the answer of.
    elsif v_excess > 0 then
      v_part := least(v_excess, v_meter.tried);
      v_meter.pending := v_meter.pending - v_part;
      v_excess := v_excess - v_part;
      v_part := least(v_excess, v_meter.uncertain);
      if v_part > 0 then
        v_causes := v_causes || format('uncertain reports arrived after all (%s)', stripe.units(v_part));
        v_meter.uncertain := v_meter.uncertain - v_part;
        v_excess := v_excess - v_part;
      end if;
      v_part := least(v_excess, v_meter.canceled);
      if v_part > 0 then
        v_row.explained := v_row.explained - v_part;
        v_causes := v_causes || format('taken back (%s), which its sums do not show yet', stripe.units(v_part));
        v_excess := v_excess - v_part;
      end if;
      if v_excess > 0 then
        v_causes := v_causes || format('sent by somebody else (%s): Stripe has more than we sent', stripe.units(v_excess));
      end if;
    end if;

    if v_meter.pending > 0 then
      v_row.explained := v_row.explained + v_meter.pending;
      v_causes := v_causes || format('not sent yet (%s)', stripe.units(v_meter.pending));
    end if;
    if v_meter.canceling > 0 then
      v_row.explained := v_row.explained - v_meter.canceling;
      v_causes := v_causes || format('about to be taken back (%s)', stripe.units(v_meter.canceling));
    end if;
    if v_meter.rejected > 0 then
      v_causes := v_causes || format(
        'rejected by Stripe (%s): %s', stripe.units(v_meter.rejected),
        stripe.last_error_of(p_period.organization_id, v_meter.code, p_period.period_start, 'rejected')
      );
    end if;
    if v_meter.uncertain > 0 then
      v_causes := v_causes || format('uncertain (%s): nobody knows whether Stripe has it', stripe.units(v_meter.uncertain));
    end if;

    -- What of it no report was made of.
    v_row.explained := v_row.explained + v_meter.carried - v_meter.passed_on - v_meter.credited;
    v_unreported := v_meter.recorded + v_meter.passed_on + v_meter.credited - v_reported - v_meter.carried;
    if abs(v_unreported) < 0.00001 then
      v_row.explained := v_row.explained + v_unreported;
      v_unreported := 0;
    end if;
    if v_meter.credited > 0 then
      v_causes := v_causes || format('reported too much (%s), and credited', stripe.units(v_meter.credited));
    end if;
    if v_meter.carried >= 1 or v_meter.carried < 0 then
      v_causes := v_causes || format(
        case when v_meter.carried < 0 then 'reported too much (%s): later usage takes it off, or a credit' else 'not reported yet (%s)' end,
        stripe.units(v_meter.carried)
      );
    elsif v_meter.carried > 0 then
      v_causes := v_causes || format('a fraction is carried (%s)', stripe.units(v_meter.carried));
    end if;
    if v_meter.passed_on <> 0 then
      v_causes := v_causes || format(
        case when v_meter.passed_on < 0 then 'a fraction went to the next period (%s)' else 'a fraction came from the period before (%s)' end,
        stripe.units(v_meter.passed_on)
      );
    end if;
    if v_unreported <> 0 then
      case
        when not v_is_linked then
          v_causes := v_causes || format('no customer at Stripe is linked (%s): see goldleaves stripe link', stripe.units(v_unreported));
        when v_meter.stripe_id is null then
          v_causes := v_causes || format('no meter at Stripe (%s): see goldleaves stripe setup', stripe.units(v_unreported));
        when stripe.is_about_to_be_reported(p_period, v_meter.code, v_meter.registered_at, v_meter.aggregation) then
          v_row.explained := v_row.explained + v_unreported;
          v_causes := v_causes || format('not reported yet (%s)', stripe.units(v_unreported));
        else
          v_causes := v_causes || format('no report was made of it (%s): does a sidecar run?', stripe.units(v_unreported));
      end case;
    end if;
    if v_row.theirs is null and v_is_linked and v_meter.stripe_id is not null then
      v_causes := v_causes || format('Stripe does not say what it has: %s', coalesce(v_meter.error, 'it was not asked'));
    end if;

    v_row.drift := coalesce(v_row.theirs, v_meter.acknowledged + v_meter.canceling) + v_row.explained - v_row.ours;
    v_row.cause := coalesce(nullif(array_to_string(v_causes, '; '), ''), 'in step');
    return next v_row;
  end loop;
end;
$$;

-- Whether the sidecar will come to what is recorded of a meter and not reported: it is queued, or so new that it cannot be queued yet.
create or replace function stripe.is_about_to_be_reported(
  p_period billing.billing_periods, p_meter_code text, p_registered_at timestamptz, p_aggregation text
)
returns boolean
language plpgsql
stable
set search_path = ''
as $$
declare
  v_position metering.rollup_position;
begin
  if p_registered_at > now() - stripe.reports_lag()
    -- A level over time grows by itself, and is looked at each hour.
    or p_aggregation = 'weighted_sum' and p_period.period_end > now() - stripe.reports_lag()
    or exists (
      select
      from stripe.report_queue q
      where q.organization_id = p_period.organization_id
        and q.meter_code = p_meter_code
    )
    or exists (
      select
      from stripe.customers c
      where c.organization_id = p_period.organization_id
        and c.deleted_at is null
        and c.linked_at > now() - stripe.reports_lag()
    )
  then
    return true;
  end if;
  select * into v_position from metering.rollup_position;
  return exists (
    select
    from metering.counted_since(
      v_position.generation, v_position.xid, p_period.organization_id, p_period.period_start, p_period.period_end, array[p_meter_code]
    )
  );
end;
$$;

-- p_lines: of Stripe's invoices, those of this period: [{"invoice", "status", "finalized_at", "line", "period_start", "period_end", "quantity",
-- "amount", "currency", "price_id", "meter_id", "unit_amount", "is_prorated", "is_of_period"}, …], times and amounts as Stripe has them;
-- is_of_period: false of those that have begun before it.
create or replace function stripe.reconcile_lines(p_period billing.billing_periods, p_lines jsonb)
returns setof stripe.reconciliations
language plpgsql
stable
set search_path = ''
as $$
declare
  v_line record;
  v_ours record;
  v_row stripe.reconciliations;
  v_late numeric;
begin
  v_row.organization_id := p_period.organization_id;
  v_row.period_start := p_period.period_start;
  v_row.kind := 'invoice_line';
  v_row.checked_at := clock_timestamp();

  -- By usage. The tiers of a price are a line each, and so are times of an invoice that are charged apart.
  for v_line in
    select
      l.invoice, l.status, to_timestamp(max(l.finalized_at)) as finalized_at, m.meter_code, l.currency,
      to_timestamp(l.period_start) as line_start, to_timestamp(l.period_end) as line_end, sum(l.quantity) as quantity, sum(l.amount) as amount,
      row_number() over (partition by l.invoice, m.meter_code order by l.period_start, l.period_end) as n,
      (
        select sum(r.quantity)
        from stripe.meter_event_reports r
        where r.organization_id = p_period.organization_id
          and r.meter_code = m.meter_code
          and r.status in ('acknowledged', 'canceling')
          and r.happened_at >= to_timestamp(l.period_start)
          and r.happened_at < to_timestamp(l.period_end)
      ) as reported
    from jsonb_to_recordset(p_lines) as l (
      invoice text, status text, finalized_at bigint, period_start bigint, period_end bigint, quantity numeric, amount numeric, currency text,
      meter_id text, is_of_period boolean
    )
    join stripe.meters m on m.id = l.meter_id
    where l.is_of_period
    group by l.invoice, l.status, m.meter_code, l.currency, l.period_start, l.period_end
    order by l.period_start, l.invoice, m.meter_code
  loop
    v_row.subject := concat_ws(' ', v_line.invoice, v_line.meter_code, nullif(v_line.n, 1));
    v_row.ours := coalesce(v_line.reported, 0);
    v_row.theirs := v_line.quantity;
    v_row.explained := 0;
    if v_line.quantity = v_row.ours then
      v_row.cause := 'in step';
    elsif v_line.status = 'draft' then
      v_row.explained := v_row.ours - v_line.quantity;
      v_row.cause := format('a draft, which may have %s more or less yet', stripe.units(v_row.explained));
    else
      select coalesce(sum(r.quantity), 0) into v_late
      from stripe.meter_event_reports r
      where r.organization_id = p_period.organization_id
        and r.meter_code = v_line.meter_code
        and r.status in ('acknowledged', 'canceling')
        and r.happened_at >= v_line.line_start
        and r.happened_at < v_line.line_end
        -- Stripe's clock goes by seconds.
        and r.acknowledged_at > v_line.finalized_at + interval '1 second';
      v_row.cause := case
        when v_line.quantity < v_row.ours and v_late > 0
          then format('not on the invoice (%s): reported after it was finalized', stripe.units(least(v_late, v_row.ours - v_line.quantity)))
        when v_line.quantity < v_row.ours then format('not on the invoice (%s), and reported before', stripe.units(v_row.ours - v_line.quantity))
        else format('on the invoice, and not reported by us (%s)', stripe.units(v_line.quantity - v_row.ours))
      end;
    end if;
    v_row.drift := v_row.theirs + v_row.explained - v_row.ours;
    return next v_row;

    -- And in money, where our statement is of the same time. It has fractions, and what was told in another time: how much there is was compared
    -- above, and here what that much costs. Where several prices made the amount of ours, nobody can say what another quantity would cost.
    select
      sum(stripe.amount_at_stripe(l.amount_cents, i.currency)) as amount, sum(l.quantity) as quantity,
      case
        when sum(l.quantity) = v_line.quantity then sum(stripe.amount_at_stripe(l.amount_cents, i.currency))
        when count(*) = 1 and min(l.kind) = 'usage'
          then stripe.amount_at_stripe(billing.amount_of((array_agg(l.price))[1], v_line.quantity), v_line.currency)
      end as rated
    into v_ours
    from billing.invoices i
    join billing.invoice_lines l on l.organization_id = i.organization_id and l.invoice_id = i.id
    where i.organization_id = p_period.organization_id
      and i.period_start = p_period.period_start
      and i.currency = v_line.currency
      and l.meter_code = v_line.meter_code
      and l.kind in ('usage', 'adjustment')
      and abs(extract(epoch from v_line.line_start - i.period_start)) < 86400
      and abs(extract(epoch from v_line.line_end - i.period_end)) < 86400;
    if v_ours.amount is not null and v_line.status <> 'draft' then
      v_row.subject := v_row.subject || ' amount';
      v_row.ours := v_ours.amount;
      v_row.theirs := v_line.amount;
      v_row.explained := v_ours.amount - coalesce(v_ours.rated, v_line.amount);
      v_row.drift := v_row.theirs + v_row.explained - v_row.ours;
      v_row.cause := case
        when v_row.drift <> 0 and v_row.explained = 0
          then format('the price differs: the statement has %s %s', v_row.ours, v_line.currency)
        when v_row.drift <> 0
          then format('the price differs: %s cost %s %s here', stripe.units(v_line.quantity), v_ours.rated, v_line.currency)
        when v_row.explained <> 0
          then format('the quantity differs: the statement has %s, and %s %s', stripe.units(v_ours.quantity), v_row.ours, v_line.currency)
        else 'in step'
      end;
      return next v_row;
    end if;
  end loop;

  -- Whatever is used: the fee of a plan, against the catalog.
  for v_line in
    select
      l.*, to_timestamp(l.period_start) as line_start, s.plan_code, f.unit_amount_cents,
      exists (select from billing.prices p where p.plan_code = s.plan_code and p.meter_code is null) as has_fee
    from jsonb_to_recordset(p_lines) as l (
      invoice text, status text, line text, period_start bigint, quantity numeric, amount numeric, currency text, price_id text, meter_id text,
      unit_amount numeric, is_prorated boolean, is_of_period boolean
    )
    left join stripe.plan_prices s on s.price_id = l.price_id
    left join lateral (
      select sum(p.unit_amount_cents) as unit_amount_cents
      from billing.prices_in_force(s.plan_code, l.currency, to_timestamp(l.period_start)) p
      where p.meter_code is null
        and p.plan_code = s.plan_code
    ) as f on s.plan_code is not null
    where l.price_id is not null
      and l.meter_id is null
      and l.is_of_period
      -- A part of a fee, or back: its time is Stripe's to reckon.
      and not coalesce(l.is_prorated, false)
    order by l.period_start, l.invoice, l.line
  loop
    v_row.subject := format('%s %s', v_line.invoice, v_line.line);
    v_row.theirs := v_line.unit_amount;
    v_row.explained := 0;
    if v_line.plan_code is null then
      v_row.ours := v_line.unit_amount;
      v_row.cause := format('price %s is no plan of ours', v_line.price_id);
    elsif not v_line.has_fee then
      -- As the plans are that come with it: who leaves fees to Stripe has nothing to compare.
      v_row.ours := v_line.unit_amount;
      v_row.cause := format('plan %s has no fee here', v_line.plan_code);
    else
      v_row.ours := coalesce(stripe.amount_at_stripe(v_line.unit_amount_cents, v_line.currency), 0);
      v_row.cause := case
        when v_row.ours = v_row.theirs then 'in step'
        else format('the price differs: %s costs %s %s here', v_line.plan_code, v_row.ours, v_line.currency)
      end;
    end if;
    v_row.drift := v_row.theirs - v_row.ours;
    return next v_row;
  end loop;

  -- Stripe has it, and bills none of it: of what it has a price for there is a line, also where nothing was used.
  for v_line in
    select r.meter_code, sum(r.quantity) as reported
    from stripe.meter_event_reports r
    join stripe.meters m on m.meter_code = r.meter_code
    where p_period.invoice_mode = 'stripe_meters'
      and r.organization_id = p_period.organization_id
      and r.period_start = p_period.period_start
      and r.status = 'acknowledged'
      and exists (
        select
        from stripe.subscriptions s
        where s.organization_id = r.organization_id
          and s.customer_id = r.customer_id
          and s.status not in ('canceled', 'incomplete', 'incomplete_expired')
          -- Whose time was over after this period, so that there is an invoice of it among those that were looked at.
          and s.current_period_start between p_period.period_end and least(now() - interval '1 day', p_period.period_end + interval '32 days')
          and r.happened_at < s.current_period_start
          and r.happened_at >= coalesce(stripe.time_in(s.facts -> 'start_date'), stripe.time_in(s.facts -> 'created'))
          and r.happened_at >= coalesce(s.trial_end, '-infinity')
      )
      and exists (
        select
        from billing.prices p
        where p.meter_code = r.meter_code
          and p.model <> 'none'
          and p.effective_from < p_period.period_end
      )
      and not exists (select from jsonb_to_recordset(p_lines) as l (meter_id text) where l.meter_id = m.id)
    group by 1
    order by 1
  loop
    v_row.subject := format('no invoice %s', v_line.meter_code);
    v_row.ours := v_line.reported;
    v_row.theirs := 0;
    v_row.explained := 0;
    v_row.drift := - v_row.ours;
    v_row.cause := 'on no invoice of Stripe''s: the subscription there has no price of this meter';
    return next v_row;
  end loop;
end;
$$;

-- p_items: those that Stripe has of the organization's customers: [{"id", "item", "amount", "currency", "invoice"}, …].
create or replace function stripe.reconcile_items(p_period billing.billing_periods, p_items jsonb)
returns setof stripe.reconciliations
language sql
stable
set search_path = ''
as $$
  select
    i.organization_id, p_period.period_start, 'invoice_item', i.id::text, a.ours, t.amount,
    case when t.amount is null and i.status = 'pending' then a.ours else 0 end,
    coalesce(t.amount, case when i.status = 'pending' then a.ours else 0 end) - a.ours,
    case
      when t.currencies is not null then format('the currency differs: %s', t.currencies)
      when t.is_void then 'its invoice was voided at Stripe'
      when t.times > 1 then format('Stripe has it %s times: delete what is too much there', t.times)
      when t.amount = a.ours and i.status in ('acknowledged', 'pending') then 'in step'
      when t.amount = a.ours then 'Stripe has it after all'
      when t.amount is not null then 'the amount differs: somebody has changed it at Stripe'
      when i.status = 'pending' and i.customer_id is null
        and not exists (select from stripe.customers c where c.organization_id = i.organization_id and c.deleted_at is null)
        then 'no customer at Stripe is linked: see goldleaves stripe link'
      when i.status = 'pending' then 'not sent yet' || coalesce(': ' || i.last_error, '')
      when i.status = 'rejected' then 'rejected by Stripe: ' || coalesce(i.last_error, 'it did not say why')
      when i.status = 'uncertain' then 'uncertain: nobody knows whether Stripe has it'
      else 'lost at Stripe: somebody has deleted it there'
    end,
    null::timestamptz, clock_timestamp()
  from stripe.invoice_items i
  cross join lateral (select stripe.amount_at_stripe(i.amount_cents, i.currency)) as a (ours)
  -- What is of another currency, or on an invoice that nobody pays, is nothing of ours.
  cross join lateral (
    select
      count(*) filter (where v.id is null) as times, sum(case when x.currency <> i.currency or v.id is not null then 0 else x.amount end) as amount,
      bool_and(v.id is not null) as is_void,
      string_agg(distinct x.currency, ', ') filter (where x.currency <> i.currency) as currencies
    from jsonb_to_recordset(p_items) as x (id text, item text, amount numeric, currency text, invoice text)
    left join stripe.invoices v on v.organization_id = i.organization_id and v.id = x.invoice and v.status = 'void'
    where x.id = i.stripe_id
      or x.item = i.id::text
  ) as t
  where i.organization_id = p_period.organization_id
    and i.period_start = p_period.period_start
$$;

-- Stores what was found, in place of what was found before, and tells the provider's application of what drifts: once, until it drifts no more.
-- p_theirs: the answer: {"usage": […], "lines": […], "items": […]}.
create or replace function stripe.reconcile(p_organization_id uuid, p_period_start timestamptz, p_theirs jsonb)
returns setof stripe.reconciliations
language plpgsql
volatile
security definer
set search_path = ''
set timezone = 'UTC'
as $$
declare
  v_period billing.billing_periods;
  v_found stripe.reconciliations[];
  v_told stripe.reconciliations;
begin
  select p.* into v_period
  from billing.billing_periods p
  where p.organization_id = p_organization_id
    and p.period_start = p_period_start;
  if not found then
    return;
  end if;
  v_found := array(
    select f
    from (
      select u.* from stripe.reconcile_usage(v_period, p_theirs -> 'usage') u where v_period.invoice_mode = 'stripe_meters'
      union all
      select l.* from stripe.reconcile_lines(v_period, p_theirs -> 'lines') l
      union all
      select i.* from stripe.reconcile_items(v_period, p_theirs -> 'items') i
    ) as f
  );

  -- One at a time, so that of two that find the same drift one tells it.
  insert into stripe.reconciled_periods as r (organization_id, period_start, checked_at)
  values (p_organization_id, p_period_start, clock_timestamp())
  on conflict (organization_id, period_start) do update
  set checked_at = excluded.checked_at, claimed_until = '-infinity';
  delete from stripe.reconciliations r
  where r.organization_id = p_organization_id
    and r.period_start = p_period_start
    and not exists (select from unnest(v_found) f where (f.kind, f.subject) = (r.kind, r.subject));
  insert into stripe.reconciliations as r (
    organization_id, period_start, kind, subject, ours, theirs, explained, drift, cause, checked_at
  )
  select
    p_organization_id, p_period_start, f.kind, f.subject, trim_scale(f.ours), trim_scale(f.theirs), trim_scale(f.explained), trim_scale(f.drift),
    f.cause, f.checked_at
  from unnest(v_found) f
  on conflict (organization_id, period_start, kind, subject) do update
  set
    ours = excluded.ours, theirs = excluded.theirs, explained = excluded.explained, drift = excluded.drift, cause = excluded.cause,
    checked_at = excluded.checked_at, told_at = case when excluded.drift <> 0 then r.told_at end;

  for v_told in
    update stripe.reconciliations r
    set told_at = clock_timestamp()
    where r.organization_id = p_organization_id
      and r.period_start = p_period_start
      and r.drift <> 0
      and r.told_at is null
    returning r.*
  loop
    perform notifications.enqueue_webhook(
      p_organization_id, 'stripe.drift',
      jsonb_build_object(
        'organization_id', p_organization_id, 'period_start', v_period.period_start, 'period_end', v_period.period_end,
        'kind', v_told.kind, 'subject', v_told.subject, 'ours', v_told.ours, 'theirs', v_told.theirs, 'drift', v_told.drift,
        'cause', v_told.cause
      )
    );
  end loop;
  return query
    select r.*
    from stripe.reconciliations r
    where r.organization_id = p_organization_id
      and r.period_start = p_period_start
    order by r.kind = 'usage' desc, r.kind, r.subject;
end;
$$;

-- What drifts now, for metrics: of usage, in units of whatever meter; of amounts in whatever currency; and how many organizations have any.
create or replace function stripe.drift()
returns table (units numeric, amounts numeric, organizations bigint)
language sql
stable
security definer
set search_path = ''
as $$
  select
    coalesce(sum(abs(r.drift)) filter (where r.kind = 'usage'), 0), coalesce(sum(abs(r.drift)) filter (where r.kind <> 'usage'), 0),
    count(distinct r.organization_id)
  from stripe.reconciliations r
  where r.drift <> 0
    -- The sidecar comes back to the current period and the one before.
    and r.period_start > now() - interval '64 days'
$$;

alter function stripe.periods_at_stripe(timestamptz, text, uuid, integer) owner to goldleaves_kernel;
alter function stripe.claim_reconciliations(integer, interval) owner to goldleaves_kernel;
alter function stripe.reconciliation_question(uuid, timestamptz) owner to goldleaves_kernel;
alter function stripe.reconcile(uuid, timestamptz, jsonb) owner to goldleaves_kernel;
alter function stripe.drift() owner to goldleaves_kernel;
grant execute on function stripe.summaries_lag(), stripe.reports_lag(), stripe.minute_of(timestamptz, boolean),
  stripe.recorded_usage(uuid, timestamptz, timestamptz), stripe.units(numeric), stripe.last_error_of(uuid, text, timestamptz, text),
  stripe.reconcile_usage(billing.billing_periods, jsonb),
  stripe.is_about_to_be_reported(billing.billing_periods, text, timestamptz, text),
  stripe.reconcile_lines(billing.billing_periods, jsonb), stripe.reconcile_items(billing.billing_periods, jsonb) to goldleaves_kernel;
grant execute on function stripe.claim_reconciliations(integer, interval), stripe.reconciliation_question(uuid, timestamptz),
  stripe.reconcile(uuid, timestamptz, jsonb), stripe.drift() to sidecar;
