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

create function api.create_api_key(name text, scopes text[], expires_at timestamptz default null)
returns jsonb
language sql
volatile
as $$ select tenancy.create_api_key(name, scopes, expires_at) $$;

comment on function api.create_api_key(text, text[], timestamptz) is $$Make an API key, and see it for the only time

Owners and admins make keys of their organization, with some of the scopes usage:read, data:read and data:write.
platform_admin makes keys of the provider, with the scope events:write: for the organization that X-Organization-ID names, or
for all without it. name has 1 to 200 characters. Returns an object: key (gl_…, which is stored nowhere: keep it), id, prefix,
organization_id, name, scopes, created_at, expires_at, rotated_from.

Errors: INVALID_NAME, INVALID_SCOPE, INVALID_EXPIRY (400), ROLE_REQUIRED (403).$$;

create function api.rotate_api_key(id uuid, overlap interval default '24 hours')
returns jsonb
language sql
volatile
as $$ select tenancy.rotate_api_key(id, overlap) $$;

comment on function api.rotate_api_key(uuid, interval) is $$Replace an API key by a new one, while both work for a time

The new key has the name, scopes and expiry of the old one, which expires after overlap (0 to 30 days, as in "24 hours"), or
earlier if it would have anyhow. Returns what create_api_key does: key is shown this once.

Errors: INVALID_EXPIRY (400), ROLE_REQUIRED (403), API_KEY_NOT_FOUND (404), API_KEY_ROTATED (409).$$;

create function api.revoke_api_key(id uuid)
returns api.api_keys
language sql
volatile
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
