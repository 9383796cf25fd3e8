-- What a token has to say besides being signed and valid now, which PostgREST checks. Its versions differ in the rest: some take
-- a fraction of a second for 1970, some refuse an audience that is no URI, all let a token without audience pass. The gateway
-- asks the same of tokens, in api/claims.py.

create or replace function tenancy.is_time_claim(p_value jsonb)
returns boolean
language sql
immutable
parallel safe
as $$
  select case jsonb_typeof(p_value)
    when 'null' then true
    when 'number' then p_value::numeric between 0 and 253402300799 and p_value::numeric = trunc(p_value::numeric)
    else false
  end
$$;

-- RFC 7519, StringOrURI: text with a colon in it has to be a URI.
create or replace function tenancy.is_string_or_uri(p_value jsonb)
returns boolean
language sql
immutable
parallel safe
as $$
  select jsonb_typeof(p_value) = 'string' and (
    strpos(p_value #>> '{}', ':') = 0
    or p_value #>> '{}' ~ (
      '^[A-Za-z][A-Za-z0-9+.-]*:'
      '(?://(?:(?:[A-Za-z0-9._~!$&''()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?(?:[A-Za-z0-9._~!$&''()*+,;=-]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?'
      '(?:/(?:[A-Za-z0-9._~!$&''()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?'
      '|/?(?:(?:[A-Za-z0-9._~!$&''()*+,;=:@-]|%[0-9A-Fa-f]{2})(?:[A-Za-z0-9._~!$&''()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?)'
      '(?:\?(?:[A-Za-z0-9._~!$&''()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?'
      '(?:#(?:[A-Za-z0-9._~!$&''()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?$'
    )
  )
$$;

-- Why a token with these claims is refused, or null. p_audience is whom it has to be for, if that is set.
create or replace function tenancy.claims_fault(p_claims jsonb, p_audience text)
returns text
language plpgsql
immutable
set search_path = ''
as $$
declare
  v_audience jsonb := nullif(p_claims -> 'aud', 'null');
begin
  if not (
    tenancy.is_time_claim(coalesce(p_claims -> 'exp', 'null'))
    and tenancy.is_time_claim(coalesce(p_claims -> 'nbf', 'null'))
    and tenancy.is_time_claim(coalesce(p_claims -> 'iat', 'null'))
  ) then
    return 'exp, nbf or iat is not a time in whole seconds';
  end if;

  if not (
    tenancy.is_string_or_uri(coalesce(nullif(p_claims -> 'sub', 'null'), '""'))
    and tenancy.is_string_or_uri(coalesce(nullif(p_claims -> 'iss', 'null'), '""'))
  ) then
    return 'sub or iss is neither a text without colon nor a URI';
  end if;

  if jsonb_typeof(p_claims -> 'jti') not in ('string', 'null')
    or jsonb_typeof(p_claims -> 'email') not in ('string', 'null')
    or jsonb_typeof(p_claims -> 'org_id') not in ('string', 'null')
  then
    return 'jti, email or org_id is not a text';
  end if;

  if v_audience is null then
    return case when p_audience is not null then 'the token has no audience (aud), and has to be for this one' end;
  end if;
  if jsonb_typeof(v_audience) <> 'array' then
    v_audience := jsonb_build_array(v_audience);
  end if;
  if v_audience = '[]' or exists (select from jsonb_array_elements(v_audience) one where not tenancy.is_string_or_uri(one)) then
    return 'the aud claim is neither a text or URI nor a list of them';
  end if;
  return case when p_audience is not null and not v_audience ? p_audience then 'the token is for another audience' end;
end;
$$;

grant execute on function tenancy.is_time_claim(jsonb), tenancy.is_string_or_uri(jsonb), tenancy.claims_fault(jsonb, text)
  to goldleaves_kernel;
