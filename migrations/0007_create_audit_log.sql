-- The audit log: who changed what, when and from where. It only grows; each entry carries the hash of the one before it in its
-- organization, and the nil UUID is the chain of the platform itself. No foreign keys to what it tells of: it outlives that.
create schema audit authorization goldleaves_owner;
set local role goldleaves_owner;

grant usage on schema audit to goldleaves_kernel, member, platform_admin, sidecar;

-- Nothing here tells of a person but by an id. What does is in audit.personal; of that, the chain has the digests.
create table audit.log (
  organization_id uuid not null,
  position bigint not null check (position > 0),
  id uuid not null,
  recorded_at timestamptz not null,
  actor_type text not null check (actor_type in ('user', 'api_key', 'service', 'platform_admin', 'database', 'anonymous')),
  actor_id text,
  action text not null check (action ~ '^[a-z0-9_]+\.[a-z0-9_]+$'),
  target_type text not null,
  target_id text,
  changed_columns text[] not null,
  before jsonb,
  after jsonb,
  request_id text,
  actor_digest bytea check (length(actor_digest) = 32),
  change_digest bytea check (length(change_digest) = 32),
  previous_hash bytea not null check (length(previous_hash) = 32),
  hash bytea not null check (length(hash) = 32),
  primary key (organization_id, position)
);
create index log_by_time on audit.log (organization_id, recorded_at);
create index log_of_target on audit.log (organization_id, target_type, target_id);

-- The end of each chain. Its lock puts the writers of one organization in a row and nobody else; and it knows of a tail that
-- somebody cut off.
create table audit.heads (
  organization_id uuid primary key,
  position bigint not null check (position >= 0),
  hash bytea not null check (length(hash) = 32)
);

-- What tells of people, apart from the chain, so that it can be erased and the chain stays whole. The salt keeps a digest from
-- being guessed once its data is erased. actor: who did it, staff: the same of the provider's people, change: what was changed.
create table audit.personal (
  organization_id uuid not null,
  position bigint not null,
  part text not null check (part in ('actor', 'staff', 'change')),
  salt bytea not null check (length(salt) = 32),
  data jsonb not null check (jsonb_typeof(data) = 'object'),
  primary key (organization_id, position, part),
  foreign key (organization_id, position) references audit.log (organization_id, position) on delete restrict
);

-- Entries of a transaction that has not ended. They become links of their chains when it commits, so that nobody waits for the
-- end of a chain with other locks still to take. Unlogged: no row outlives its transaction.
create unlogged table audit.pending (
  id bigint generated always as identity primary key,
  chain_id uuid not null,
  recorded_at timestamptz not null default clock_timestamp(),
  actor_type text not null,
  actor_id text,
  action text not null,
  target_type text not null,
  target_id text,
  before jsonb,
  after jsonb,
  request_id text,
  actor jsonb,
  change jsonb,
  -- The first of its transaction: its trigger links all of them.
  is_first boolean not null
);

reset role;
