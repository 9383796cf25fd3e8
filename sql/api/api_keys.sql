-- API keys. Functions make them, and show each one once; the view never does.
create view api.api_keys with (security_invoker) as
select
  id, organization_id, kind, name, prefix, scopes, created_by, created_at, expires_at, revoked_at, last_used_at, rotated_from
from tenancy.api_keys;

comment on view api.api_keys is 'API keys of the organization, for its owners and admins; platform_admin sees those of all, and the provider''s.';
comment on column api.api_keys.id is 'What rotate_api_key and revoke_api_key take.';
comment on column api.api_keys.organization_id is 'Whose data or usage the key is for; null for a key of the provider that is for all.';
comment on column api.api_keys.kind is 'organization, or provider: it sends usage events.';
comment on column api.api_keys.name is '1 to 200 characters, for people.';
comment on column api.api_keys.prefix is 'What the key begins with after gl_, to tell keys apart.';
comment on column api.api_keys.scopes is 'usage:read, data:read and data:write for an organization''s keys, events:write for the provider''s.';
comment on column api.api_keys.created_by is 'Id of the user who made it; null when staff did, or when they are no longer known.';
comment on column api.api_keys.created_at is 'When it was made (UTC).';
comment on column api.api_keys.expires_at is 'From when on it is refused (UTC); null means never.';
comment on column api.api_keys.revoked_at is 'When it was revoked (UTC); null while it is not.';
comment on column api.api_keys.last_used_at is 'When it was last used (UTC), known after a minute or so; null means never.';
comment on column api.api_keys.rotated_from is 'Id of the key that this one takes over from.';

grant select on api.api_keys to member, platform_admin;

create function api.create_api_key(
  inout name text,
  inout scopes text[],
  inout expires_at timestamptz default null,
  out id uuid,
  out organization_id uuid,
  out prefix text,
  out created_at timestamptz,
  out key text
)
language sql
volatile
set search_path = ''
as $$
  select
    (k.p_made).name, (k.p_made).scopes, (k.p_made).expires_at, (k.p_made).id, (k.p_made).organization_id, (k.p_made).prefix,
    (k.p_made).created_at, k.p_key
  from tenancy.create_api_key(create_api_key.name, create_api_key.scopes, create_api_key.expires_at) k
$$;

comment on function api.create_api_key(text, text[], timestamptz) is $$Make an API key, and see it for the only time

Owners and admins make keys of their organization, with some of the scopes usage:read, data:read and data:write. platform_admin
makes keys of the provider, with the scope events:write: for the organization that X-Organization-ID names, or for all without it.
name has 1 to 200 characters. Without expires_at the key is good until it is revoked.

- name: The name, trimmed. Never null.
- scopes: What the key may do. Never null.
- expires_at: From when on it is refused (UTC); null means never.
- id: What rotate_api_key and revoke_api_key take. Never null.
- organization_id: Whose data or usage the key is for; null for all.
- prefix: What the key begins with after gl_. Never null.
- created_at: When it was made (UTC). Never null.
- key: The key, gl_…, to be sent as Authorization: Bearer. Only its hash is stored. Never null.

Errors: INVALID_NAME, INVALID_SCOPE, INVALID_EXPIRY (400), ROLE_REQUIRED (403).$$;

create function api.rotate_api_key(
  inout id uuid,
  overlap interval default '24 hours',
  out name text,
  out scopes text[],
  out expires_at timestamptz,
  out organization_id uuid,
  out prefix text,
  out created_at timestamptz,
  out rotated_from uuid,
  out key text
)
language sql
volatile
set search_path = ''
as $$
  select
    (k.p_made).id, (k.p_made).name, (k.p_made).scopes, (k.p_made).expires_at, (k.p_made).organization_id, (k.p_made).prefix,
    (k.p_made).created_at, (k.p_made).rotated_from, k.p_key
  from tenancy.rotate_api_key(rotate_api_key.id, rotate_api_key.overlap) k
$$;

comment on function api.rotate_api_key(uuid, interval) is $$Replace an API key by a new one, while both work for a time

The new key has the name, scopes and expiry of the old one, which expires after overlap (0 to 30 days, as in "24 hours"), or
earlier if it would have anyhow.

- id: That of the new key. Never null.
- name: The name. Never null.
- scopes: What the key may do. Never null.
- expires_at: From when on the new key is refused (UTC); null means never.
- organization_id: Whose data or usage the key is for; null for all.
- prefix: What the new key begins with after gl_. Never null.
- created_at: When it was made (UTC). Never null.
- rotated_from: Id of the old key. Never null.
- key: The new key, shown this once. Never null.

Errors: INVALID_EXPIRY (400), ROLE_REQUIRED (403), API_KEY_NOT_FOUND (404), API_KEY_ROTATED (409).$$;

create function api.revoke_api_key(id uuid)
returns api.api_keys
language sql
volatile
set search_path = ''
as $$
  select
    k.id, k.organization_id, k.kind, k.name, k.prefix, k.scopes, k.created_by, k.created_at, k.expires_at, k.revoked_at,
    k.last_used_at, k.rotated_from
  from tenancy.revoke_api_key(revoke_api_key.id) k
$$;

comment on function api.revoke_api_key(uuid) is $$Revoke an API key

It is refused from the next request on, for ever. platform_admin may revoke any key. Revoking it again changes nothing. Returns
the key as api_keys shows it.

Errors: ROLE_REQUIRED (403), API_KEY_NOT_FOUND (404).$$;

grant execute on function api.create_api_key(text, text[], timestamptz), api.rotate_api_key(uuid, interval), api.revoke_api_key(uuid)
  to member, service, platform_admin;
