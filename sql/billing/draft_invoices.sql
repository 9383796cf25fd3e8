-- Invoices as they would be issued: a row a payer, with its lines. Previews show them, finalization stores them, verification compares them
-- with what is stored; nothing else makes an invoice, so the three cannot disagree.
--
-- p_issued: null, or an invoice that was issued; it is then drafted by the plan, currency, tax and prices that were in force for it, and by
-- what there is of usage now.
-- Each payer gets one: who pays when the period begins and who pays when it ends, also for nothing, and whoever else has to pay something in
-- it (an adjustment of a time before).
create or replace function billing.draft_invoices(
  p_organization_id uuid, p_period_start timestamptz, p_period_end timestamptz, p_timezone text, p_issued billing.invoices default null
)
returns table (invoice billing.invoices, lines billing.invoice_lines[])
language plpgsql
stable
set search_path = ''
as $$
declare
  v_organization tenancy.organizations;
  v_terms billing.billing_terms;
  v_is_issued boolean := p_issued.id is not null;
  v_draft billing.invoices;
  v_payer uuid;
  v_taxable numeric;
  v_tax numeric;
  v_rated billing.rated_charge[];
begin
  select * into strict v_organization from tenancy.organizations o where o.id = p_organization_id;
  select * into v_terms from billing.billing_terms t where t.organization_id = p_organization_id;

  v_draft.organization_id := p_organization_id;
  v_draft.period_start := p_period_start;
  v_draft.period_end := p_period_end;
  v_draft.timezone := p_timezone;
  v_draft.kind := case
    when v_is_issued then p_issued.kind
    when billing.invoice_mode_of(p_organization_id, p_period_start) = 'local' then 'invoice'
    else 'statement'
  end;
  v_draft.plan_code := coalesce(
    case when v_is_issued then p_issued.plan_code end,
    -- The one that the period ends with.
    (select f.plan_code from billing.phase_at(p_organization_id, p_period_end - interval '1 microsecond') f),
    v_organization.plan
  );
  v_draft.currency := case when v_is_issued then p_issued.currency else v_organization.currency end;
  v_draft.tax_name := case when v_is_issued then p_issued.tax_name else coalesce(v_terms.tax_name, 'Tax') end;
  v_draft.tax_percent := coalesce(case when v_is_issued then p_issued.tax_percent else v_terms.tax_percent end, 0);
  v_draft.tax_inclusive := coalesce(case when v_is_issued then p_issued.tax_inclusive else v_terms.tax_inclusive end, false);
  v_draft.rated_at := case when v_is_issued then coalesce(p_issued.rated_at, p_issued.issued_at) end;
  v_draft.issuer := billing.profile_of('00000000-0000-0000-0000-000000000000', 'organization');

  v_rated := array(
    select r
    from billing.rate_period(
      p_organization_id, p_period_start, p_period_end, v_draft.plan_code, v_draft.currency, coalesce(v_draft.rated_at, 'infinity')
    ) r
    where r.kind <> 'unpriced'
      -- Where all was voided there is nothing to say, nor of a plan that was in force for less than a millionth of the month.
      and (r.events <> 0 or r.value <> 0 or r.amount_cents <> 0 or r.kind = 'fee' and r.quantity > 0)
  );

  for v_payer in
    select p.user_id
    from (
      select billing.payer(v_organization.billing_user_id, v_organization.billing_start_at, p_period_start)
      union
      select billing.payer(
        v_organization.billing_user_id, v_organization.billing_start_at, p_period_end - interval '1 microsecond'
      )
      union
      select r.payer_user_id from unnest(v_rated) r
    ) as p (user_id)
    order by p.user_id nulls last
  loop
    invoice := v_draft;
    invoice.payer_user_id := v_payer;
    invoice.billing_entity_type := case when v_payer is null then 'organization' else 'user' end;
    invoice.billing_entity_id := coalesce(v_payer, p_organization_id);
    invoice.billing_profile := billing.profile_of(p_organization_id, invoice.billing_entity_type);

    select
      coalesce(array_agg(
        row(
          p_organization_id, null, r.line_number, r.meter_code, r.description, r.unit, r.events, r.quantity,
          case when r.terms ->> 'model' in ('per_unit', 'flat') then (r.terms ->> 'unit_amount_cents')::numeric end,
          r.amount_cents, r.kind, r.groups, r.terms, r.tiers, r.belongs_to, trim_scale(r.exact_cents), r.value
        )::billing.invoice_lines
        order by r.line_number
      ), '{}'),
      coalesce(sum(r.amount_cents), 0)
    into lines, v_taxable
    from (
      select
        c.*,
        row_number() over (
          order by
            array_position(array['fee', 'usage', 'adjustment'], c.kind), c.belongs_to, c.meter_code, c.groups = '{}', c.groups,
            -- In the order in which plans were in force.
            c.terms #>> '{in_force,0,from}', c.terms ->> 'price_id'
        ) as line_number
      from unnest(v_rated) c
      where c.payer_user_id is not distinct from v_payer
    ) as r;

    invoice.subtotal_cents := v_taxable;
    -- To 20 places: of the quotient of two large numbers Postgres has so few that it would be rounded twice.
    v_tax := round(v_taxable * v_draft.tax_percent, 20) / case when v_draft.tax_inclusive then 100 + v_draft.tax_percent else 100 end;
    invoice.tax_cents := round(v_tax);
    if v_draft.tax_percent > 0 then
      -- An inclusive tax is in the other lines already.
      lines := lines || row(
        p_organization_id, null, cardinality(lines) + 1, null,
        format('%s %s %%', v_draft.tax_name, trim_scale(v_draft.tax_percent)) || case when v_draft.tax_inclusive then ', included' else '' end,
        null, 0, v_taxable, null, case when v_draft.tax_inclusive then 0 else invoice.tax_cents end, 'tax', '{}',
        jsonb_build_object('tax_percent', trim_scale(v_draft.tax_percent), 'tax_inclusive', v_draft.tax_inclusive, 'tax_cents', invoice.tax_cents),
        null, null, trim_scale(v_tax), null
      )::billing.invoice_lines;
    end if;
    invoice.total_cents := v_taxable + case when v_draft.tax_inclusive then 0 else invoice.tax_cents end;
    invoice.balance_applied_cents := case
      when v_draft.kind = 'statement' then 0
      when v_is_issued then coalesce(p_issued.balance_applied_cents, 0)
      else least(
        greatest(invoice.total_cents, 0), billing.balance_of(p_organization_id, v_payer, v_draft.currency)
      )
    end;
    -- What is below zero goes to the balance. Of a statement nothing is due: Stripe's invoice is paid.
    invoice.amount_due_cents := case v_draft.kind
      when 'invoice' then greatest(invoice.total_cents, 0) - invoice.balance_applied_cents
      else 0
    end;
    return next;
  end loop;
end;
$$;

-- Whom an invoice is made out to, as it is written there. Where nobody has said, the organization's name or the person's e-mail.
create or replace function billing.profile_of(p_organization_id uuid, p_billing_entity_type text)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'legal_name', coalesce(p.legal_name, case when p_billing_entity_type = 'user' then u.email end, o.name),
    'address', p.address,
    'country', p.country,
    'email', coalesce(p.email, case when p_billing_entity_type = 'user' then u.email end),
    'tax_id', p.tax_id
  ))
  from tenancy.organizations o
  left join billing.billing_profiles p on p.organization_id = o.id and p.billing_entity_type = p_billing_entity_type
  left join tenancy.users u on u.id = o.billing_user_id
  where o.id = p_organization_id
$$;

-- What a payer has in hand, in minor units: never below zero.
create or replace function billing.balance_of(p_organization_id uuid, p_payer_user_id uuid, p_currency text)
returns numeric
language sql
stable
set search_path = ''
as $$
  select coalesce(sum(b.amount_cents), 0)
  from billing.balance_entries b
  where b.organization_id = p_organization_id
    and b.payer_user_id is not distinct from p_payer_user_id
    and b.currency = p_currency
$$;

grant execute on function billing.draft_invoices(uuid, timestamptz, timestamptz, text, billing.invoices),
  billing.profile_of(uuid, text), billing.balance_of(uuid, uuid, text) to goldleaves_kernel;
