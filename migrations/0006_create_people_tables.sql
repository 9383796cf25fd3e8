-- Invitations bring people into an organization, API keys let services in, workspaces are rooms inside it.
set local role goldleaves_owner;

-- Of a code only the hash is kept. It is found by it, whatever the organization, so the index does not start with that; it is not
-- unique, which would be an oracle, and needs not be: two codes of 128 random bits never meet.
create table tenancy.invitations (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  email text not null check (email = lower(btrim(email) collate "C") and length(email) between 3 and 320),
  role text not null check (role in ('owner', 'admin', 'member', 'viewer', 'billing')),
  code_sha256 bytea not null check (length(code_sha256) = 32),
  invited_by uuid not null references tenancy.users (id) on delete cascade,
  created_at timestamptz not null default now(),
  sent_at timestamptz not null default now(),
  expires_at timestamptz not null,
  accepted_at timestamptz,
  accepted_by uuid references tenancy.users (id) on delete set null,
  revoked_at timestamptz,
  primary key (organization_id, id),
  check (accepted_at is null or revoked_at is null)
);
create unique index invitations_pending on tenancy.invitations (organization_id, email) where accepted_at is null and revoked_at is null;
create index invitations_code on tenancy.invitations (code_sha256);
create index invitations_of_inviter on tenancy.invitations (invited_by);
create index invitations_accepted_by on tenancy.invitations (accepted_by);

-- A personal organization has one workspace at most. Its row holds the only place there is (place = 1), under any isolation level;
-- workspaces of other organizations need none.
create table tenancy.workspaces (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  name text not null check (length(btrim(name)) between 1 and 200),
  place smallint check (place = 1),
  created_by uuid default tenancy.current_user_id(),
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  constraint workspaces_one_of_a_personal_organization unique (organization_id, place)
);

-- Keys of organizations, and those of the provider, which are for one organization or for all (null). Of the key itself only the
-- hash is kept; it is found by its prefix. Tenants write here through functions alone, so that prefixes tell them nothing.
create table tenancy.api_keys (
  id uuid primary key default ops.new_id(),
  kind text not null check (kind in ('organization', 'provider')),
  organization_id uuid references tenancy.organizations (id) on delete cascade,
  name text not null check (length(btrim(name)) between 1 and 200),
  prefix text not null unique check (prefix ~ '^[0-9a-f]{12}$'),
  key_sha256 bytea not null check (length(key_sha256) = 32),
  scopes text[] not null check (cardinality(scopes) > 0),
  created_by uuid references tenancy.users (id) on delete set null,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  revoked_at timestamptz,
  last_used_at timestamptz,
  rotated_from uuid references tenancy.api_keys (id) on delete set null,
  check (kind = 'provider' or organization_id is not null),
  check (scopes <@ case kind when 'provider' then array['events:write'] else array['usage:read', 'data:read', 'data:write'] end)
);
create index api_keys_of_organization on tenancy.api_keys (organization_id);
create index api_keys_created_by on tenancy.api_keys (created_by);
create index api_keys_rotated_from on tenancy.api_keys (rotated_from);
reset role;
