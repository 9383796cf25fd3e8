-- Whom invoices are made out to, from the next one on: what was issued keeps the profile it was issued with. Owners, admins and billing
-- users write their organization's, or the person's who pays for a personal one; the provider's staff that of any, and of the platform
-- itself, which is the issuer.

-- Null leaves a part as it is, an empty text takes it away.
create or replace function billing.set_billing_profile(
  p_legal_name text, p_address text, p_country text, p_email text, p_tax_id text
)
returns billing.billing_profiles
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_made billing.billing_profiles;
  v_address text := btrim(regexp_replace(p_address, E'\r\n?', E'\n', 'g'), E' \n');
  v_country text := upper(btrim(p_country));
  v_problem text;
begin
  perform billing.require_profile_writer();
  v_problem := case
    when p_legal_name ~ '[[:cntrl:]]' or length(btrim(p_legal_name)) > 200 then 'legal_name has 200 characters at most, in one line'
    when replace(v_address, E'\n', '') ~ '[[:cntrl:]]' or length(v_address) > 1000 or v_address ~ E'(\n[^\n]*){10}'
      then 'address has 10 lines and 1,000 characters at most'
    when v_country !~ '^([A-Z]{2})?$' then 'country is two letters, as in ISO 3166: DE'
    when btrim(p_email) !~ '^([^@[:space:][:cntrl:]]+@[^@[:space:][:cntrl:]]+)?$' or length(btrim(p_email)) > 254
      then 'email is no e-mail address'
    when p_tax_id ~ '[[:cntrl:]]' or length(btrim(p_tax_id)) > 64 then 'tax_id has 64 characters at most, in one line'
  end;
  if v_problem is not null then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_BILLING_PROFILE: ' || v_problem,
      hint = 'What is left out stays as it is; an empty text takes it away.';
  end if;

  insert into billing.billing_profiles as b (organization_id, billing_entity_type, legal_name, address, country, email, tax_id)
  select
    o.id,
    case when billing.payer(o.billing_user_id, o.billing_start_at, now()) is null then 'organization' else 'user' end,
    nullif(btrim(p_legal_name), ''), nullif(v_address, ''), nullif(v_country, ''), nullif(btrim(p_email), ''), nullif(btrim(p_tax_id), '')
  from tenancy.organizations o
  where o.id = tenancy.current_org()
  on conflict (organization_id, billing_entity_type) do update set
    legal_name = case when p_legal_name is null then b.legal_name else excluded.legal_name end,
    address = case when p_address is null then b.address else excluded.address end,
    country = case when p_country is null then b.country else excluded.country end,
    email = case when p_email is null then b.email else excluded.email end,
    tax_id = case when p_tax_id is null then b.tax_id else excluded.tax_id end,
    updated_at = now()
  returning * into v_made;
  return v_made;
end;
$$;

-- A person's role is the one of now: who was removed meanwhile writes nothing any more.
create or replace function billing.require_profile_writer()
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  if current_setting('role', true) = 'platform_admin' then
    perform tenancy.require_organization();
  elsif tenancy.require_member() not in ('owner', 'admin', 'billing') then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only owners, admins and billing users say whom invoices are made out to',
      hint = 'Ask one of them. GET /memberships says who they are.';
  end if;
end;
$$;

alter function billing.set_billing_profile(text, text, text, text, text) owner to goldleaves_kernel;
grant execute on function billing.require_profile_writer() to goldleaves_kernel;
grant execute on function billing.set_billing_profile(text, text, text, text, text) to member, platform_admin;
