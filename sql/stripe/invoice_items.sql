-- Amounts on their way to Stripe's invoices: lines of statements, and credits for usage that Stripe can no longer take back. The sidecar claims
-- some, sends each under its id as the idempotency key, and says what came of it. Who dies in between has it sent again under the same key,
-- which counts once for a day. What nobody knows the end of by then is looked for at Stripe, and sent anew if it is not there.

-- The same for the same amount, also where a database that was restored closes a period that was closed before: there it has another statement.
create or replace function stripe.item_id(
  p_organization_id uuid, p_kind text, p_period_start timestamptz, p_payer_user_id uuid, p_line_number integer, p_meter_code text
)
returns uuid
language sql
immutable
parallel safe
set search_path = ''
as $$
  select stripe.uuid_of(jsonb_build_array(
    'item', p_organization_id, p_kind, extract(epoch from p_period_start)::bigint, p_payer_user_id, p_line_number, p_meter_code
  )::text)
$$;

-- The lines of a statement that Stripe is to charge. With stripe_items all that was rated here; with stripe_meters Stripe rates the usage
-- itself, and fees are left. Never a fee that Stripe charges already, and no tax: that is Stripe's to add. A line is one item, for ever.
create or replace function stripe.queue_invoice_items(p_invoice billing.invoices, p_lines billing.invoice_lines[], p_invoice_mode text)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into stripe.invoice_items (
    organization_id, id, kind, invoice_id, line_number, amount_cents, currency, description, period_start, period_end
  )
  select
    p_invoice.organization_id,
    stripe.item_id(p_invoice.organization_id, 'line', p_invoice.period_start, p_invoice.payer_user_id, l.line_number, null),
    'line', p_invoice.id, l.line_number, l.amount_cents, p_invoice.currency,
    stripe.item_description(l, p_invoice.timezone), p_invoice.period_start, p_invoice.period_end
  from unnest(p_lines) l
  where l.amount_cents <> 0
    and l.kind = any (case p_invoice_mode when 'stripe_items' then array['fee', 'usage', 'adjustment'] else array['fee'] end)
    and not coalesce((l.price ->> 'by_stripe')::boolean, false)
  on conflict do nothing
$$;

-- What stands on Stripe's invoice: what it is for, how much of it, and of which earlier period.
create or replace function stripe.item_description(p_line billing.invoice_lines, p_timezone text)
returns text
language sql
stable
set search_path = ''
as $$
  select left(concat_ws(
    ', ',
    p_line.description,
    (select string_agg(format('%s: %s', g.key, g.value), ', ' order by g.key) from jsonb_each_text(p_line.groups) g),
    case when p_line.kind <> 'fee' then concat_ws(' ', trim_scale(p_line.quantity), p_line.unit) end,
    case
      when p_line.kind = 'adjustment'
        then format('late, of the period from %s', (p_line.belongs_to at time zone coalesce(p_timezone, 'UTC'))::date)
    end
  ), 500)
$$;

-- After a day Stripe may have forgotten an idempotency key; less some time for what is on its way.
create or replace function stripe.key_lasts()
returns interval
language sql
immutable
parallel safe
as $$ select interval '23 hours' $$;

-- Those that have been due for longest, of organizations whose customer is of the mode that the key is of. Customer and subscription are chosen
-- now, and stay so as long as it is sent under the same key. is_lost: it is to be looked for at Stripe, by the item in its metadata. attempts
-- is what comes back with what came of it.
create or replace function stripe.claim_invoice_items(p_most integer, p_lease interval, p_is_live boolean)
returns table (
  organization_id uuid, id uuid, attempts integer, idempotency_key text, is_lost boolean, created_at timestamptz, customer_id text,
  subscription_id text, amount bigint, currency text, description text, period_start timestamptz, period_end timestamptz, tax_behavior text,
  metadata jsonb
)
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  -- Who has no customer is asked for again in a while, so that those who wait for one hold up nobody.
  update stripe.invoice_items i
  set next_attempt_at = clock_timestamp() + interval '5 minutes'
  where (i.organization_id, i.id) in (
    select d.organization_id, d.id
    from stripe.invoice_items d
    where d.status in ('pending', 'uncertain')
      and d.next_attempt_at <= now()
      and not exists (
        select
        from stripe.customers c
        where c.organization_id = d.organization_id
          and c.is_live = p_is_live
          and (c.id = d.customer_id or d.first_sent_at is null and c.deleted_at is null)
      )
    for update skip locked
  );

  return query
    with due as materialized (
      select d.organization_id, d.id
      from stripe.invoice_items d
      where d.status in ('pending', 'uncertain')
        and d.next_attempt_at <= now()
      order by d.next_attempt_at, d.created_at
      limit p_most
      for update skip locked
    ), chosen as (
      select
        d.*,
        -- In a database that was restored it may have been sent after the backup, also what is made anew of a period that was over by then.
        coalesce(i.first_sent_at < clock_timestamp() - stripe.key_lasts(), false)
          or coalesce(coalesce(i.looked_for_at, least(i.created_at, i.period_end)) < stripe.restored_at(), false) as is_lost,
        case when i.first_sent_at is null then c.id else i.customer_id end as customer_id,
        case
          when i.first_sent_at is not null then i.subscription_id
          else (
            select s.id
            from stripe.subscriptions s
            where s.organization_id = d.organization_id
              and s.customer_id = c.id
              and s.status in ('trialing', 'active', 'past_due', 'unpaid')
            order by s.latest_event_at desc, s.id
            limit 1
          )
        end as subscription_id
      from due d
      join stripe.invoice_items i on i.organization_id = d.organization_id and i.id = d.id
      left join stripe.customers c on c.organization_id = d.organization_id and c.deleted_at is null and c.is_live = p_is_live
    ), claimed as (
      update stripe.invoice_items i
      set
        next_attempt_at = clock_timestamp() + p_lease, customer_id = c.customer_id, subscription_id = c.subscription_id,
        status = case when c.is_lost then 'uncertain' else i.status end,
        first_sent_at = coalesce(i.first_sent_at, clock_timestamp()),
        attempts = i.attempts + 1
      from chosen c
      where i.organization_id = c.organization_id
        and i.id = c.id
        and c.customer_id is not null
      returning i.*, c.is_lost
    )
    select
      c.organization_id, c.id, c.attempts, concat_ws('-', c.id, nullif(c.rounds, 0)), c.is_lost, c.created_at, c.customer_id, c.subscription_id,
      stripe.amount_at_stripe(c.amount_cents, c.currency)::bigint, c.currency, c.description, c.period_start, c.period_end,
      -- What our prices contain, Stripe must not add once more.
      case when v.tax_percent > 0 then case when v.tax_inclusive then 'inclusive' else 'exclusive' end end,
      jsonb_strip_nulls(jsonb_build_object(
        'goldleaves_item', c.id, 'organization_id', c.organization_id, 'kind', c.kind, 'invoice_id', c.invoice_id, 'line', c.line_number,
        'meter', c.meter_code
      ))
    from claimed c
    left join billing.invoices v on v.organization_id = c.organization_id and v.id = c.invoice_id
    order by c.created_at, c.id;
end;
$$;

-- Stripe has it: whoever says so is right, also after the lease.
create or replace function stripe.acknowledge_invoice_item(p_organization_id uuid, p_id uuid, p_stripe_id text)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update stripe.invoice_items i
  set status = 'acknowledged', stripe_id = p_stripe_id, acknowledged_at = clock_timestamp(), last_error = null
  where i.organization_id = p_organization_id
    and i.id = p_id
    and i.status <> 'acknowledged'
$$;

-- Nobody knows what came of it: again, under the same key, at least once an hour.
create or replace function stripe.retry_invoice_item(p_organization_id uuid, p_id uuid, p_attempts integer, p_error text)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update stripe.invoice_items i
  set
    next_attempt_at = clock_timestamp() + stripe.pause_after(least(p_attempts, 5)) * (1 + random() * 0.2),
    last_error = left(p_error, 500)
  where i.organization_id = p_organization_id
    and i.id = p_id
    and i.attempts = p_attempts
    and i.status in ('pending', 'uncertain')
$$;

-- It was not done, or not even sent: that was no attempt.
create or replace function stripe.postpone_invoice_item(p_organization_id uuid, p_id uuid, p_attempts integer, p_after interval)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update stripe.invoice_items i
  set
    next_attempt_at = clock_timestamp() + p_after,
    attempts = i.attempts - 1,
    first_sent_at = case when i.attempts > 1 then i.first_sent_at end
  where i.organization_id = p_organization_id
    and i.id = p_id
    and i.attempts = p_attempts
    and i.status in ('pending', 'uncertain')
$$;

create or replace function stripe.reject_invoice_item(p_organization_id uuid, p_id uuid, p_attempts integer, p_error text)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update stripe.invoice_items i
  set status = 'rejected', last_error = left(p_error, 500)
  where i.organization_id = p_organization_id
    and i.id = p_id
    and i.attempts = p_attempts
    and i.status in ('pending', 'uncertain')
$$;

-- Stripe does not have what was lost: it is sent anew, under another key.
create or replace function stripe.renew_invoice_item(p_organization_id uuid, p_id uuid, p_attempts integer)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update stripe.invoice_items i
  set
    status = 'pending', attempts = 0, rounds = i.rounds + 1, looked_for_at = clock_timestamp(), first_sent_at = null,
    next_attempt_at = clock_timestamp()
  where i.organization_id = p_organization_id
    and i.id = p_id
    and i.attempts = p_attempts
    and i.status = 'uncertain'
$$;

-- What Stripe refused, once what was wrong is mended: by a DBA, or `goldleaves stripe`. It is looked for first. Null: of everybody.
create or replace function stripe.resend_invoice_items(p_organization_id uuid default null)
returns integer
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_resent integer;
begin
  update stripe.invoice_items i
  set status = 'uncertain', first_sent_at = '-infinity', next_attempt_at = clock_timestamp()
  where i.status = 'rejected'
    and (p_organization_id is null or i.organization_id = p_organization_id);
  get diagnostics v_resent = row_count;
  return v_resent;
end;
$$;

-- What waits, for metrics.
create or replace function stripe.invoice_item_backlog()
returns table (pending bigint, uncertain bigint, rejected bigint, oldest_seconds double precision)
language sql
stable
security definer
set search_path = ''
as $$
  select
    count(*) filter (where i.status = 'pending'), count(*) filter (where i.status = 'uncertain'),
    (select count(*) from stripe.invoice_items r where r.status = 'rejected'),
    coalesce(extract(epoch from greatest(clock_timestamp() - min(i.created_at), '0')), 0)::double precision
  from stripe.invoice_items i
  where i.status in ('pending', 'uncertain')
$$;

alter function stripe.claim_invoice_items(integer, interval, boolean) owner to goldleaves_kernel;
alter function stripe.acknowledge_invoice_item(uuid, uuid, text) owner to goldleaves_kernel;
alter function stripe.retry_invoice_item(uuid, uuid, integer, text) owner to goldleaves_kernel;
alter function stripe.postpone_invoice_item(uuid, uuid, integer, interval) owner to goldleaves_kernel;
alter function stripe.reject_invoice_item(uuid, uuid, integer, text) owner to goldleaves_kernel;
alter function stripe.renew_invoice_item(uuid, uuid, integer) owner to goldleaves_kernel;
alter function stripe.invoice_item_backlog() owner to goldleaves_kernel;
grant execute on function stripe.queue_invoice_items(billing.invoices, billing.invoice_lines[], text),
  stripe.item_id(uuid, text, timestamptz, uuid, integer, text), stripe.item_description(billing.invoice_lines, text), stripe.key_lasts(),
  stripe.resend_invoice_items(uuid) to goldleaves_kernel;
grant execute on function stripe.claim_invoice_items(integer, interval, boolean), stripe.acknowledge_invoice_item(uuid, uuid, text),
  stripe.retry_invoice_item(uuid, uuid, integer, text), stripe.postpone_invoice_item(uuid, uuid, integer, interval),
  stripe.reject_invoice_item(uuid, uuid, integer, text), stripe.renew_invoice_item(uuid, uuid, integer), stripe.invoice_item_backlog()
  to sidecar;
