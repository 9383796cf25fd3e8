-- API keys: gl_<prefix>_<secret>. An organization's are made by its owners and admins and do what their scopes say; the provider's
-- are made by platform_admin and send usage, for one organization or for all. A key is shown once; its hash is what stays.

-- Whose keys the caller manages: 'organization' or 'provider'. A key manages none, itself included. Keys stay when whoever made them
-- goes, so a person's role is the one of now, and nobody goes until the key is there to be seen.
create or replace function tenancy.require_key_manager()
returns text
language plpgsql
volatile
set search_path = ''
as $$
begin
  if current_setting('role', true) = 'platform_admin' then
    return 'provider';
  elsif current_setting('role', true) = 'member' and tenancy.current_role_in('owner', 'admin') then
    if tenancy.require_member() in ('owner', 'admin') then
      return 'organization';
    end if;
  end if;
  raise exception using
    errcode = 'PT403',
    message = 'ROLE_REQUIRED: owners and admins manage the API keys of their organization, platform_admin those of the provider';
end;
$$;

create or replace function tenancy.issue_api_key(
  p_kind text, p_organization_id uuid, p_name text, p_scopes text[], p_expires_at timestamptz, p_rotated_from uuid,
  out p_made tenancy.api_keys, out p_key text
)
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_prefix text;
begin
  loop
    -- The first 48 bits of a random UUID are random, and 122 of all: the secret has 244, and nothing in common with the prefix.
    v_prefix := left(replace(gen_random_uuid()::text, '-', ''), 12);
    p_key := format(
      'gl_%s_%s', v_prefix, encode(sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')), 'hex')
    );
    insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes, created_by, expires_at, rotated_from)
    values (
      p_kind, p_organization_id, p_name, v_prefix, sha256(convert_to(p_key, 'UTF8')), p_scopes, tenancy.current_user_id(),
      p_expires_at, p_rotated_from
    )
    on conflict (prefix) do nothing
    returning * into p_made;
    exit when p_made.id is not null;
  end loop;
end;
$$;

create or replace function tenancy.create_api_key(
  p_name text, p_scopes text[], p_expires_at timestamptz, out p_made tenancy.api_keys, out p_key text
)
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_kind text := tenancy.require_key_manager();
  v_allowed text[] := case v_kind when 'provider' then array['events:write'] else array['usage:read', 'data:read', 'data:write'] end;
  v_scopes text[] := array(select distinct s from unnest(p_scopes) as s order by s);
  v_issued record;
  v_wrong text := (select coalesce(s, 'null') from unnest(v_scopes) as s where (s = any (v_allowed)) is not true limit 1);
begin
  perform tenancy.require_name(p_name);
  if v_scopes = '{}' or v_wrong is not null then
    raise exception using
      errcode = 'PT400',
      message = case
        when v_wrong is null then 'INVALID_SCOPE: a key needs a scope at least'
        else format('INVALID_SCOPE: %s is no scope of a key of the %s', left(v_wrong, 80), v_kind)
      end,
      hint = format('Its scopes are %s.', array_to_string(v_allowed, ', '));
  end if;
  if p_expires_at <= now() or not isfinite(p_expires_at) then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_EXPIRY: expires_at has to be in the future',
      hint = 'Leave it out for a key that does not expire.';
  end if;
  v_issued := tenancy.issue_api_key(v_kind, tenancy.current_org(), btrim(p_name), v_scopes, p_expires_at, null);
  p_made := v_issued.p_made;
  p_key := v_issued.p_key;
end;
$$;

-- The key, locked, if the caller manages it or is the provider's staff, who see all of them.
create or replace function tenancy.take_api_key(p_id uuid)
returns tenancy.api_keys
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_kind text := tenancy.require_key_manager();
  v_key tenancy.api_keys;
begin
  select k.* into v_key
  from tenancy.api_keys k
  where k.id = p_id
    and (v_kind = 'provider' or (k.kind = 'organization' and k.organization_id = tenancy.current_org()))
  for update;
  if v_key.id is null then
    raise exception using
      errcode = 'PT404',
      message = format('API_KEY_NOT_FOUND: there is no API key %s', p_id),
      hint = 'GET /api_keys lists them; id is what is asked for here, not the prefix.';
  end if;
  return v_key;
end;
$$;

-- A second key like the first one, which goes on for as long as it takes to put the new one everywhere. Staff do not rotate the keys
-- of organizations: what they got would open data that is not theirs to write.
create or replace function tenancy.rotate_api_key(p_id uuid, p_overlap interval, out p_made tenancy.api_keys, out p_key text)
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_old tenancy.api_keys := tenancy.take_api_key(p_id);
  v_until timestamptz := now() + p_overlap;
  v_successor uuid;
  v_issued record;
begin
  if v_old.kind <> tenancy.require_key_manager() then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: owners and admins rotate the API keys of their organization',
      hint = 'Revoke it instead, and ask them for a new one.';
  end if;
  if v_old.revoked_at is not null or v_old.expires_at <= now() then
    raise exception using
      errcode = 'PT404',
      message = format('API_KEY_NOT_FOUND: the API key %s is revoked or expired', v_old.name),
      hint = 'Make a new one with create_api_key.';
  end if;
  -- Its expiry is that of the overlap, which its next successor would inherit.
  select k.id into v_successor from tenancy.api_keys k where k.rotated_from = v_old.id;
  if v_successor is not null then
    raise exception using
      errcode = 'PT409',
      message = format('API_KEY_ROTATED: the API key %s was rotated before', v_old.name),
      hint = format('Rotate its successor, %s.', v_successor);
  end if;
  if v_until is null or v_until < now() or v_until > now() + interval '30 days' then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_EXPIRY: overlap needs to be between 0 and 30 days',
      hint = 'Write it as in "24 hours".';
  end if;

  update tenancy.api_keys k set expires_at = least(k.expires_at, v_until) where k.id = v_old.id;
  v_issued := tenancy.issue_api_key(v_old.kind, v_old.organization_id, v_old.name, v_old.scopes, v_old.expires_at, v_old.id);
  p_made := v_issued.p_made;
  p_key := v_issued.p_key;
end;
$$;

-- Revoking what is revoked changes nothing.
create or replace function tenancy.revoke_api_key(p_id uuid)
returns tenancy.api_keys
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_key tenancy.api_keys := tenancy.take_api_key(p_id);
begin
  if v_key.revoked_at is null then
    update tenancy.api_keys k set revoked_at = now() where k.id = v_key.id returning k.revoked_at into v_key.revoked_at;
  end if;
  return v_key;
end;
$$;

-- The sidecar asks with the hash of what a client sent, so that no secret comes here. Nothing tells a wrong secret from a key that is
-- unknown, revoked or expired.
create or replace function tenancy.find_api_key(p_prefix text, p_sha256 bytea)
returns table (id uuid, kind text, organization_id uuid)
language sql
stable
security definer
set search_path = ''
as $$
  select k.id, k.kind, k.organization_id
  from tenancy.api_keys k
  where k.prefix = p_prefix
    and k.key_sha256 = p_sha256
    and k.revoked_at is null
    and (k.expires_at is null or k.expires_at > now())
$$;

-- For which organization a batch of events counts that came with a key of the provider: null when each event names its own.
-- p_organization_id is the one that the request named.
create or replace function tenancy.organization_of_events(p_key_id uuid, p_organization_id uuid)
returns uuid
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_key tenancy.api_keys;
begin
  select * into v_key from tenancy.live_api_key(p_key_id);
  if v_key.id is null then
    raise exception using
      errcode = 'PT401',
      message = 'INVALID_API_KEY: the API key is unknown, revoked or expired',
      hint = 'platform_admin makes a new one.';
  end if;
  if not 'events:write' = any (v_key.scopes) then
    raise exception using
      errcode = 'PT403',
      message = 'SCOPE_REQUIRED: sending usage events needs a key with the scope events:write',
      hint = 'platform_admin makes such keys.';
  end if;
  if p_organization_id <> v_key.organization_id then
    raise exception using
      errcode = 'PT403',
      message = 'NOT_A_MEMBER: this API key is for another organization',
      hint = 'Leave X-Organization-ID out: this key is for one organization.';
  end if;
  return coalesce(v_key.organization_id, p_organization_id);
end;
$$;

-- p_uses: {"<id>": "<when last>"}, from each sidecar once in a while. Locked in the order of their ids, since two sidecars may tell of
-- the same keys at once. What came after the end of a key was refused, and is no use of it.
create or replace function tenancy.note_key_use(p_uses jsonb)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  with uses as materialized (
    select u.key::uuid as id, least(u.value::timestamptz, now()) as used_at
    from jsonb_each_text(p_uses) as u
  ),
  locked as materialized (
    select k.id
    from tenancy.api_keys k
    where k.id in (select u.id from uses u)
    order by k.id
    for no key update
  )
  update tenancy.api_keys k
  set last_used_at = u.used_at
  from locked l
  join uses u on u.id = l.id
  where k.id = l.id
    and (k.last_used_at is null or k.last_used_at < u.used_at)
    and u.used_at < coalesce(least(k.revoked_at, k.expires_at), 'infinity')
$$;

alter function tenancy.create_api_key(text, text[], timestamptz) owner to goldleaves_kernel;
alter function tenancy.rotate_api_key(uuid, interval) owner to goldleaves_kernel;
alter function tenancy.revoke_api_key(uuid) owner to goldleaves_kernel;
alter function tenancy.find_api_key(text, bytea) owner to goldleaves_kernel;
alter function tenancy.organization_of_events(uuid, uuid) owner to goldleaves_kernel;
alter function tenancy.note_key_use(jsonb) owner to goldleaves_kernel;
grant execute on function tenancy.require_key_manager(), tenancy.issue_api_key(text, uuid, text, text[], timestamptz, uuid),
  tenancy.take_api_key(uuid) to goldleaves_kernel;
grant execute on function tenancy.create_api_key(text, text[], timestamptz), tenancy.rotate_api_key(uuid, interval),
  tenancy.revoke_api_key(uuid) to member, service, platform_admin;
grant execute on function tenancy.find_api_key(text, bytea), tenancy.organization_of_events(uuid, uuid),
  tenancy.note_key_use(jsonb) to sidecar;
