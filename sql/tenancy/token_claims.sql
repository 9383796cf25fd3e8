-- What a token has to say besides being signed and valid now, which PostgREST checks. Its versions differ in the rest: some take
-- a fraction of a second for 1970, all let a token without audience pass. The gateway asks the same of tokens, in api/claims.py.
-- tenancy.pre_request() pins the search_path; without one here these are inlined into it, since it is in the way of each request.

create or replace function tenancy.is_time_claim(p_value jsonb)
returns boolean
language sql
immutable
parallel safe
as $$
  select case jsonb_typeof(p_value)
    when 'number' then p_value::numeric between 0 and 253402300799 and p_value::numeric = trunc(p_value::numeric)
    else coalesce(p_value, 'null') = 'null'
  end
$$;

create or replace function tenancy.is_text_claim(p_value jsonb)
returns boolean
language sql
immutable
parallel safe
as $$ select coalesce(jsonb_typeof(p_value), 'null') in ('string', 'null') $$;

-- Why a token with these claims is refused, or null. p_audience is whom it has to be for, if that is set.
create or replace function tenancy.claims_fault(p_claims jsonb, p_audience text)
returns text
language sql
immutable
parallel safe
as $$
  select case
    when not (
      tenancy.is_time_claim(p_claims -> 'exp')
      and tenancy.is_time_claim(p_claims -> 'nbf')
      and tenancy.is_time_claim(p_claims -> 'iat')
    ) then 'exp, nbf or iat is not a time in whole seconds'
    when not (
      tenancy.is_text_claim(p_claims -> 'sub')
      and tenancy.is_text_claim(p_claims -> 'iss')
      and tenancy.is_text_claim(p_claims -> 'jti')
      and tenancy.is_text_claim(p_claims -> 'email')
      and tenancy.is_text_claim(p_claims -> 'org_id')
    ) then 'sub, iss, jti, email or org_id is not a text'
    when coalesce(p_claims -> 'aud', 'null') = 'null' then
      case when p_audience is not null then 'the token has no audience (aud), and has to be for this one' end
    when not case jsonb_typeof(p_claims -> 'aud')
      when 'string' then true
      when 'array' then p_claims -> 'aud' <> '[]' and not p_claims -> 'aud' @? 'strict $[*] ? (@.type() != "string")'
      else false
    end then 'the aud claim is neither a text nor a list of them'
    when p_audience is not null and not p_claims -> 'aud' ? p_audience then 'the token is for another audience'
  end
$$;

-- Most identity providers let people type any address, and say whether they have verified it. One that says nothing vouches for it.
create or replace function tenancy.email_is_verified(p_claims jsonb)
returns boolean
language sql
immutable
parallel safe
as $$ select coalesce(lower(p_claims ->> 'email_verified'), 'true') = 'true' $$;

grant execute on function tenancy.is_time_claim(jsonb), tenancy.is_text_claim(jsonb), tenancy.claims_fault(jsonb, text),
  tenancy.email_is_verified(jsonb) to goldleaves_kernel;
