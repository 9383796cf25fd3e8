-- usage_events is the only place where a metered fact is stored; event_keys makes each of them count once, for ever.
set local role goldleaves_owner;

create table metering.meters (
  code text primary key check (code ~ '^[a-z0-9_.]{1,64}$'),
  event_name text not null unique,
  aggregation text not null default 'sum' check (aggregation in ('sum', 'count')),
  unit text not null,
  description text not null,
  created_at timestamptz not null default now()
);

-- Transaction ids order what was recorded, but only within one cluster: a dump that is restored into another one starts anew
-- among smaller ids. So a position is (generation, transaction id), and each cluster that has held this database is a row here.
create table metering.generations (
  generation integer primary key check (generation > 0),
  system_identifier bigint not null,
  began_at timestamptz not null default now()
);

-- No foreign key to organizations: checking it would lock the organization's row for each event. A billing period is made
-- before the event is written, and that has the foreign key.
create table metering.usage_events (
  organization_id uuid not null,
  occurred_at timestamptz not null,
  id uuid not null default ops.new_id(),
  source text not null,
  idempotency_key text,
  event_type text not null default 'usage' check (event_type in ('usage', 'adjustment')),
  event_name text not null,
  quantity numeric not null,
  unit text,
  user_id text,
  resource_id text,
  request_id text,
  dimensions jsonb not null default '{}',
  belongs_at timestamptz,
  -- Who pays, as it was decided when the event was recorded: a person, or with null the organization.
  payer_user_id uuid,
  billing_entity_type text not null generated always as (case when payer_user_id is null then 'organization' else 'user' end) stored,
  billing_entity_id uuid not null generated always as (coalesce(payer_user_id, organization_id)) stored,
  recorded_at timestamptz not null default clock_timestamp(),
  recorded_generation integer not null,
  recorded_xid xid8 not null default pg_current_xact_id(),
  primary key (organization_id, occurred_at, id),
  check ((event_type = 'adjustment') = (belongs_at is not null))
) partition by range (occurred_at);

-- What a person paid lies far back once an organization pays. Partial: where nobody ever paid, it costs next to nothing.
create index usage_events_of_users on metering.usage_events (organization_id, occurred_at, id) where billing_entity_type = 'user';

create table metering.event_keys (
  organization_id uuid not null,
  key uuid not null,
  fact uuid not null,
  primary key (organization_id, key)
);

create table metering.rejected_events (
  id uuid primary key default ops.new_id(),
  organization_id uuid,
  source text not null,
  code text not null,
  message text not null,
  event jsonb not null,
  rejected_at timestamptz not null default now()
);

create index rejected_events_of_organization on metering.rejected_events (organization_id, rejected_at);

-- An event of a batch, read and checked, on its way through metering.ingest_events().
create type metering.parsed_event as (
  position integer,
  organization_id uuid,
  key uuid,
  fact uuid,
  id text,
  event_name text,
  quantity numeric,
  unit text,
  occurred_at timestamptz,
  user_id text,
  resource_id text,
  request_id text,
  dimensions jsonb,
  problem text
);

insert into metering.generations (generation, system_identifier)
select 1, system_identifier
from pg_catalog.pg_control_system();

insert into metering.meters (code, event_name, aggregation, unit, description) values
  ('api.request', 'api.request', 'sum', 'request', 'Requests to a billable route of the API'),
  ('doc.upload', 'doc.upload', 'sum', 'document', 'Documents uploaded'),
  ('doc.processed', 'doc.processed', 'sum', 'document', 'Documents processed');

reset role;
