-- Organizations are the tenants, users are people, memberships say who may do what in which organization.
set local role goldleaves_owner;

create table tenancy.organizations (
  id uuid primary key default ops.new_id(),
  kind text not null default 'organization' check (kind in ('personal', 'organization')),
  name text not null check (length(btrim(name)) between 1 and 200),
  slug text not null check (
    slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
    and slug !~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
  ),
  plan text not null default 'starter',
  billing_timezone text not null default 'UTC',
  billing_anchor_day smallint not null default 1 check (billing_anchor_day between 1 and 31),
  currency text not null default 'usd' check (currency ~ '^[a-z]{3}$'),
  owner_user_id uuid not null,
  -- The person who pays what was used before billing_start_at; of a personal organization, which has none yet, everything.
  billing_user_id uuid,
  billing_start_at timestamptz,
  created_at timestamptz not null default now(),
  -- Personal: the person pays. Founded as an organization: it always has paid. Converted: first the one, then the other.
  check (case kind
    when 'personal' then billing_user_id is not null and billing_start_at is null
    else (billing_user_id is null) = (billing_start_at is null)
  end)
);

create table tenancy.users (
  id uuid primary key default ops.new_id(),
  subject text not null unique check (length(subject) between 1 and 255),
  email text,
  default_organization_id uuid references tenancy.organizations (id) on delete set null,
  created_at timestamptz not null default now()
);

alter table tenancy.organizations
  add foreign key (owner_user_id) references tenancy.users (id) on delete restrict,
  add foreign key (billing_user_id) references tenancy.users (id) on delete restrict;

create table tenancy.memberships (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  user_id uuid not null references tenancy.users (id) on delete cascade,
  role text not null check (role in ('owner', 'admin', 'member', 'viewer', 'billing')),
  created_at timestamptz not null default now(),
  primary key (organization_id, user_id)
);

-- Partial, though it holds all of them: a foreign key cannot refer to it, so a new slug does not lock the organization's row against
-- everybody who writes rows that refer to the organization.
create unique index organizations_slug_key on tenancy.organizations (slug) where slug is not null;
create index organizations_owner on tenancy.organizations (owner_user_id);
create index organizations_billing_user on tenancy.organizations (billing_user_id);
create index users_default_organization on tenancy.users (default_organization_id);
create index memberships_of_user on tenancy.memberships (user_id);

reset role;
