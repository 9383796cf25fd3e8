-- What PostgREST runs first in each transaction (db-pre-request). It reads the claims of the token that PostgREST has verified
-- and takes nothing from the caller but the organization's name. It is not in schema api, so that nobody calls it as an RPC.
create or replace function tenancy.pre_request()
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_claims jsonb := coalesce(nullif(current_setting('request.jwt.claims', true), ''), '{}')::jsonb;
  v_headers jsonb := coalesce(nullif(current_setting('request.headers', true), ''), '{}')::jsonb;
  v_path text := coalesce(current_setting('request.path', true), '');
  v_request_id text := v_headers ->> 'x-request-id';
  v_organization text := coalesce(nullif(btrim(v_headers ->> 'x-organization-id'), ''), nullif(v_claims ->> 'org_id', ''));
  v_fault text;
  -- The role that PostgREST has switched to, not what the claim says it is.
  v_role text := current_setting('role', true);
begin
  -- Planned counts come from the statistics of the whole table, and leakproof operators read them under RLS too: the estimate
  -- of a filter tells how many rows other tenants have. There is no switch for it in PostgREST.
  if v_headers ->> 'prefer' ~* 'count\s*=\s*"?(planned|estimated)' then
    raise exception using
      errcode = 'PT400',
      message = 'COUNT_NOT_EXACT: planned and estimated counts are made from all tenants'' rows',
      hint = 'Use Prefer: count=exact.';
  end if;

  -- Without a token PostgREST itself writes a claim, the role anon.
  if v_role <> 'anon' or v_claims - 'role' <> '{}' then
    v_fault := tenancy.claims_fault(v_claims, nullif(current_setting('app.settings.jwt_aud', true), ''));
    if v_fault is not null then
      raise exception using
        errcode = 'PT401',
        message = 'INVALID_TOKEN: ' || v_fault,
        hint = 'Get a new token from your identity provider.';
    end if;
  end if;

  if v_request_id !~ '^[A-Za-z0-9._:-]{1,128}$' then
    v_request_id := null;
  end if;
  -- The gateway exchanges an API key for a token that names it, and lets no other token name one.
  if v_role = 'member' and v_claims ? 'goldleaves_key' then
    perform tenancy.enter_with_key((v_claims ->> 'goldleaves_key')::uuid, v_organization, v_request_id);
  else
    perform tenancy.enter(
      p_subject => v_claims ->> 'sub',
      p_role => v_role,
      -- Whoever accepts an invitation is no member yet of the organization that their frontend may name.
      p_organization => case when v_path <> '/rpc/accept_invitation' then v_organization end,
      p_request_id => v_request_id,
      p_scope => case
        when v_path in ('/rpc/sign_in', '/rpc/accept_invitation') then 'sign_in'
        when v_path in (
          '/organizations', '/memberships', '/plans', '/currencies', '/rpc/create_organization', '/rpc/health', '/'
        ) then 'person'
        else 'organization'
      end
    );
  end if;

  -- PostgREST runs a query to its end, also when its client has hung up: a few that embed each other deep enough, billed to nobody,
  -- would take all of its connections for hours. `alter role member set statement_timeout = …` says otherwise, and goes first.
  if v_role in ('anon', 'member') and current_setting('statement_timeout') = '0' then
    -- Who changes people or who pays holds locks that others wait for, also while it is read what they want to see beside it. Any
    -- letter of a path can come percent-encoded.
    if v_path ~ '^/(rpc/|memberships$|organizations$)|%' and current_setting('transaction_read_only') = 'off' then
      set local statement_timeout = '5s';
    else
      set local statement_timeout = '30s';
    end if;
  end if;
end;
$$;

alter function tenancy.pre_request() owner to goldleaves_kernel;
grant execute on function tenancy.pre_request() to anon, member, service, platform_admin;
