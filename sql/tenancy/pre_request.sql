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
begin
  -- Planned counts come from the statistics of the whole table, and leakproof operators read them under RLS too: the estimate
  -- of a filter tells how many rows other tenants have. There is no switch for it in PostgREST.
  if v_headers ->> 'prefer' ~* 'count\s*=\s*"?(planned|estimated)' then
    raise exception using
      errcode = 'PT400',
      message = 'COUNT_NOT_EXACT: planned and estimated counts are made from all tenants'' rows',
      hint = 'Use Prefer: count=exact.';
  end if;

  perform tenancy.enter(
    p_subject => v_claims ->> 'sub',
    -- The role that PostgREST has switched to, not what the claim says it is.
    p_role => current_setting('role', true),
    p_organization => coalesce(nullif(btrim(v_headers ->> 'x-organization-id'), ''), nullif(v_claims ->> 'org_id', '')),
    p_request_id => case when v_request_id ~ '^[A-Za-z0-9._:-]{1,128}$' then v_request_id end,
    p_scope => case
      when v_path = '/rpc/sign_in' then 'sign_in'
      when v_path in ('/organizations', '/memberships', '/rpc/create_organization', '/rpc/health', '/') then 'person'
      else 'organization'
    end
  );

  -- PostgREST runs a query to its end, also when its client has hung up: a few that embed each other deep enough, billed to nobody,
  -- would take all of its connections for hours. `alter role member set statement_timeout = …` says otherwise, and goes first.
  if current_setting('role', true) in ('anon', 'member') and current_setting('statement_timeout') = '0' then
    set local statement_timeout = '30s';
  end if;
end;
$$;

alter function tenancy.pre_request() owner to goldleaves_kernel;
grant execute on function tenancy.pre_request() to anon, member, service, platform_admin;
