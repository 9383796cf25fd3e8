-- The tenant's own tables, and the place where an adopter adds theirs. Every key starts with organization_id, or uniqueness
-- would tell one tenant about another.
set local role goldleaves_owner;

create table app.clients (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  name text not null check (length(btrim(name)) between 1 and 200),
  email text,
  created_by uuid default tenancy.current_user_id(),
  created_at timestamptz not null default now(),
  primary key (organization_id, id)
);

create table app.cases (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  client_id uuid,
  title text not null check (length(btrim(title)) between 1 and 200),
  status text not null default 'open' check (status in ('open', 'closed')),
  created_by uuid default tenancy.current_user_id(),
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  foreign key (organization_id, client_id) references app.clients (organization_id, id) on delete set null (client_id)
);

create table app.documents (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  case_id uuid,
  title text not null check (length(btrim(title)) between 1 and 200),
  size_bytes bigint not null default 0 check (size_bytes >= 0),
  status text not null default 'uploaded' check (status in ('uploaded', 'processing', 'processed', 'failed')),
  storage_key text,
  created_by uuid default tenancy.current_user_id(),
  created_at timestamptz not null default now(),
  primary key (organization_id, id),
  foreign key (organization_id, case_id) references app.cases (organization_id, id) on delete set null (case_id)
);

create index cases_of_client on app.cases (organization_id, client_id);
create index documents_of_case on app.documents (organization_id, case_id);

reset role;
