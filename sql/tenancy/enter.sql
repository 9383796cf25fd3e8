-- Tenant context. Each transaction of a tenant begins with tenancy.enter(): it finds out who asks, for which organization and
-- with which role, and writes that into settings of this transaction, which the policies compare. One lookup, nothing cached.

create or replace function tenancy.is_uuid(p_text text)
returns boolean
language sql
immutable
parallel safe
as $$ select p_text ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' $$;

-- Organizations are named by id or slug. The gateway and PostgREST both ask here, so that they mean the same one. Two queries,
-- since a condition that is one CASE over both columns is one for a sequential scan.
create or replace function tenancy.find_organization(p_named text)
returns uuid
language sql
stable
set search_path = ''
as $$
  select o.id from tenancy.organizations o where o.id = case when tenancy.is_uuid(p_named) then p_named::uuid end
  union all
  select o.id from tenancy.organizations o where not tenancy.is_uuid(p_named) and o.slug = p_named
$$;

-- An API key that is good now. Its callers pin the search_path; without one here it is inlined into them.
create or replace function tenancy.live_api_key(p_id uuid)
returns setof tenancy.api_keys
language sql
stable
as $$
  select k.*
  from tenancy.api_keys k
  where k.id = p_id
    and k.revoked_at is null
    and (k.expires_at is null or k.expires_at > pg_catalog.now())
$$;

-- `set local` and not set_config: Citus forwards the first to its workers. Every setting is written each time, so that nothing
-- that leaked into a pooled connection can survive. One EXECUTE for all of them, because it is in the way of each request.
create or replace function tenancy.set_context(
  p_organization_id uuid, p_user_id uuid, p_role text, p_request_id text, p_my_organizations uuid[] default '{}', p_key_id uuid default null
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
begin
  execute format(
    'set local app.current_org = %L; set local app.current_user_id = %L; set local app.current_org_role = %L; '
    'set local app.current_key_id = %L; set local app.request_id = %L; set local app.my_organizations = %L; '
    'set local app.rls_enabled = true',
    coalesce(p_organization_id::text, ''), coalesce(p_user_id::text, ''), coalesce(p_role, ''), coalesce(p_key_id::text, ''),
    coalesce(p_request_id, ''), p_my_organizations::text
  );
end;
$$;

-- A service with an API key of an organization: it acts for that one, and has the key's scopes where a person has a role.
create or replace function tenancy.enter_with_key(p_key_id uuid, p_organization text, p_request_id text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_key tenancy.api_keys;
begin
  select * into v_key from tenancy.live_api_key(p_key_id) k where k.kind = 'organization';
  if v_key.id is null then
    raise exception using
      errcode = 'PT401',
      message = 'INVALID_API_KEY: the API key is unknown, revoked or expired',
      hint = 'An owner or admin of the organization makes a new one.';
  end if;
  if p_organization is not null and tenancy.find_organization(p_organization) is distinct from v_key.organization_id then
    raise exception using
      errcode = 'PT403',
      message = format('NOT_A_MEMBER: this API key is not for organization %s', left(p_organization, 80)),
      hint = 'Leave X-Organization-ID out: a key is for one organization.';
  end if;
  perform tenancy.set_context(v_key.organization_id, null, array_to_string(v_key.scopes, ','), p_request_id, p_key_id => v_key.id);
end;
$$;

-- p_organization is what the client asked for (UUID or slug), or null for the user's default.
-- p_scope: 'organization' needs one; 'person' is for what belongs to the caller as a person (their list of organizations);
-- 'sign_in' may also be called by somebody who is not known yet.
create or replace function tenancy.enter(
  p_subject text, p_role text, p_organization text, p_request_id text, p_scope text default 'organization'
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_user_id uuid;
  v_default_id uuid;
  v_organization_id uuid;
  v_role text;
  v_mine uuid[] := '{}';
begin
  if p_role = 'anon' then
    perform tenancy.set_context(null, null, null, p_request_id);
    return;
  end if;

  if p_role in ('service', 'platform_admin') then
    if p_organization is not null then
      v_organization_id := tenancy.find_organization(p_organization);
      if v_organization_id is null then
        raise exception using
          errcode = 'PT404',
          message = format('ORGANIZATION_NOT_FOUND: there is no organization %s', left(p_organization, 80)),
          hint = 'X-Organization-ID takes the id or the slug of an organization.';
      end if;
    end if;
    perform tenancy.set_context(v_organization_id, null, null, p_request_id);
    return;
  end if;

  if p_role is distinct from 'member' or nullif(p_subject, '') is null then
    raise exception using
      errcode = 'PT401',
      message = 'INVALID_TOKEN: the token names no subject',
      hint = 'A member''s JWT needs the claims sub and role.';
  end if;

  select u.id, u.default_organization_id into v_user_id, v_default_id
  from tenancy.users u
  where u.subject = p_subject;

  if v_user_id is null then
    if p_scope = 'sign_in' then
      perform tenancy.set_context(null, null, null, p_request_id);
      return;
    end if;
    raise exception using
      errcode = 'PT403',
      message = 'USER_NOT_PROVISIONED: this subject has not signed in yet',
      hint = 'POST /rpc/sign_in once, or come through the gateway, which does it for you.';
  end if;

  v_organization_id := case when p_organization is null then v_default_id else tenancy.find_organization(p_organization) end;
  if p_scope = 'organization' then
    select m.role into v_role
    from tenancy.memberships m
    where m.organization_id = v_organization_id
      and m.user_id = v_user_id;
  else
    select coalesce(array_agg(m.organization_id), '{}'), max(m.role) filter (where m.organization_id = v_organization_id)
    into v_mine, v_role
    from tenancy.memberships m
    where m.user_id = v_user_id;
  end if;

  if v_role is null and (p_organization is not null or (p_scope = 'organization' and v_organization_id is not null)) then
    raise exception using
      errcode = 'PT403',
      message = format('NOT_A_MEMBER: you are not a member of organization %s', left(coalesce(p_organization, v_organization_id::text), 80)),
      hint = 'GET /organizations without X-Organization-ID lists yours.';
  end if;

  if v_organization_id is null and p_scope = 'organization' then
    raise exception using
      errcode = 'PT400',
      message = 'ORGANIZATION_REQUIRED: no organization was chosen and you have no default one',
      hint = 'Send X-Organization-ID (id or slug), or a token with the claim org_id.';
  end if;

  perform tenancy.set_context(case when v_role is not null then v_organization_id end, v_user_id, v_role, p_request_id, v_mine);
end;
$$;

grant execute on function tenancy.is_uuid(text), tenancy.find_organization(text), tenancy.live_api_key(uuid),
  tenancy.set_context(uuid, uuid, text, text, uuid[], uuid), tenancy.enter_with_key(uuid, text, text),
  tenancy.enter(text, text, text, text, text) to goldleaves_kernel;
