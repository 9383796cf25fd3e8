-- Meters read, filter and group what events carry, in versions that never rewrite the past; rollups make their sums quick to read.
set local role goldleaves_owner;

-- A meter is what it is now; metering.meter_versions keeps what it was. What it aggregates and its unit are fixed: another one
-- is another meter, since nobody could say what a period means in which it changed.
alter table metering.meters
  drop constraint meters_event_name_key,
  drop constraint meters_aggregation_check,
  alter column event_name drop not null,
  add check (aggregation in ('sum', 'count', 'max', 'min', 'latest', 'unique', 'weighted_sum')),
  -- What of an event is read: quantity, weighted_units, user_id, workspace_id, resource_id, or dimensions.<name>.
  add column value text not null default 'quantity'
    check (value ~ '^(quantity|weighted_units|user_id|workspace_id|resource_id|dimensions\.[A-Za-z0-9_.:-]{1,64})$'),
  -- Only events whose dimensions have these values count: {"model": ["large", "small"]}.
  add column filter jsonb not null default '{}' check (jsonb_typeof(filter) = 'object'),
  add column group_by text[] not null default '{}' check (cardinality(group_by) <= 8),
  -- How many groups an organization may have in a period; what comes after them is in the group "other".
  add column max_groups integer not null default 1000 check (max_groups between 1 and 100000),
  add column allow_negative boolean not null default false,
  -- One unit is so much of what events carry: 1073741824 bytes are a GiB.
  add column unit_size numeric not null default 1 check (unit_size > 0),
  -- When an event happened, from which on a change of these counts.
  add column effective_from timestamptz not null default '-infinity',
  add column version integer not null default 1 check (version > 0),
  add column deleted_at timestamptz,
  add check (event_name is not null or value = 'weighted_units');

-- The version that counts an event is the last one that was there when the event was recorded and is effective when it happened.
create table metering.meter_versions (
  meter_code text not null references metering.meters (code) on delete restrict,
  version integer not null check (version > 0),
  event_name text,
  value text not null,
  filter jsonb not null,
  group_by text[] not null,
  max_groups integer not null,
  allow_negative boolean not null,
  effective_from timestamptz not null,
  -- False from the deletion of the meter on.
  counts boolean not null default true,
  created_at timestamptz not null,
  primary key (meter_code, version)
);

update metering.meters set group_by = '{endpoint,method}' where code = 'api.request';
insert into metering.meters (code, event_name, aggregation, value, group_by, allow_negative, unit, unit_size, description) values
  ('traffic.bytes', 'traffic.bytes', 'sum', 'quantity', '{endpoint,method,status_code}', false, 'byte', 1,
    'Bytes of requests and responses, headers and bodies'),
  ('storage.bytes', 'storage.bytes', 'weighted_sum', 'quantity', '{}', true, 'GiB-hour', 1073741824, 'Bytes stored, for as long as they were'),
  ('compute.units', null, 'sum', 'weighted_units', '{}', false, 'unit', 1, 'What operations weigh');

insert into metering.meter_versions (
  meter_code, version, event_name, value, filter, group_by, max_groups, allow_negative, effective_from, created_at
)
select code, version, event_name, value, filter, group_by, max_groups, allow_negative, effective_from, created_at
from metering.meters;

alter table metering.usage_events
  add column workspace_id text,
  -- Where it happened, for people: {"type": "project", "project": "Apollo", "workspace": "Legal"}; null: other.
  add column context jsonb,
  -- quantity times the weight that the operation had when it happened; null where no weight is set.
  add column weighted_units numeric,
  -- The event that this row voids, or that it puts right.
  add column corrects uuid,
  -- A correction is counted by the versions of the meters that counted what it corrects: those of this moment.
  add column metered_at timestamptz,
  drop constraint usage_events_event_type_check,
  drop constraint usage_events_check,
  -- void: takes back another event: the same row with a negative quantity. An adjustment, and a void with belongs_at, counts now for
  -- a period that was finalized already, the one around belongs_at.
  add constraint usage_events_event_type_check check (event_type in ('usage', 'adjustment', 'void')),
  add constraint usage_events_belongs_check check (
    case event_type when 'adjustment' then belongs_at is not null when 'usage' then belongs_at is null else corrects is not null end
  );

-- In the order in which it was recorded, for rollups and what they have not taken yet: always at the right end of the tree. Of the organization
-- a hash: no other index has that, so who asks for it gets this one, and not what the planner thinks is short.
create index usage_events_recorded on metering.usage_events (recorded_generation, recorded_xid, uuid_hash(organization_id));

-- Where a key's event is, to find it again without an index of its own.
alter table metering.event_keys add column occurred_at timestamptz;

-- Everything below this position is rolled up, and nothing else.
create table metering.rollup_position (
  only_row boolean primary key default true check (only_row),
  generation integer not null,
  xid xid8 not null,
  moved_at timestamptz not null default now()
);
insert into metering.rollup_position (generation, xid) values (0, '0');

-- What the events below that position come to, an hour (a quarter where the timezone of the period is not whole hours from UTC) and a
-- billing period. meter_version 0: no meter counts them, and meter_code is the name of the event. The last five columns are null where
-- the meter does not aggregate by them.
create table metering.usage_rollups (
  organization_id uuid not null,
  grain text not null check (grain in ('hour', 'period')),
  meter_code text not null,
  bucket_start timestamptz not null,
  meter_version integer not null,
  billing_entity_id uuid not null,
  groups jsonb not null,
  events bigint not null,
  value numeric not null,
  -- The sum of value times seconds since bucket_start.
  moment numeric,
  max_value numeric,
  min_value numeric,
  latest_value numeric,
  latest_at timestamptz,
  latest_id uuid,
  primary key (organization_id, grain, meter_code, bucket_start, meter_version, billing_entity_id, groups)
);

-- The values that unique meters have seen; a value counts while it has events that were not voided.
create table metering.unique_values (
  organization_id uuid not null,
  grain text not null check (grain in ('hour', 'period')),
  meter_code text not null,
  bucket_start timestamptz not null,
  meter_version integer not null,
  billing_entity_id uuid not null,
  groups jsonb not null,
  value_hash uuid not null,
  events bigint not null,
  primary key (organization_id, grain, meter_code, bucket_start, meter_version, billing_entity_id, groups, value_hash)
);

-- How much an organization stored when a day of its timezone ended.
create table metering.storage_snapshots (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  day date not null,
  day_end timestamptz not null,
  bytes numeric not null,
  taken_at timestamptz not null default now(),
  primary key (organization_id, day)
);

-- What a unit of an operation (the name of an event) weighs, for all organizations or for one, from a moment on.
create table metering.operation_weights (
  id uuid primary key default ops.new_id(),
  organization_id uuid references tenancy.organizations (id) on delete cascade,
  operation text not null check (operation ~ '^[A-Za-z0-9_.:-]{1,128}$'),
  effective_from timestamptz not null,
  weight numeric not null check (weight >= 0 and weight < 1e9 and scale(weight) <= 9),
  created_at timestamptz not null default now(),
  unique nulls not distinct (organization_id, operation, effective_from)
);
create index operation_weights_of_operation on metering.operation_weights (operation);
comment on constraint operation_weights_pkey on metering.operation_weights is
  'goldleaves lint key_without_organization: a weight may be for all organizations, and the kernel makes the key';

-- Batches that had events again, or events of finalized periods: a row each, so that nobody waits for a counter.
create table metering.repeated_batches (
  id uuid primary key default ops.new_id(),
  organization_id uuid not null,
  source text not null,
  accepted integer not null,
  duplicates integer not null,
  conflicts integer not null,
  locked integer not null,
  recorded_at timestamptz not null default now()
);
create index repeated_batches_recorded on metering.repeated_batches (recorded_at);
comment on constraint repeated_batches_pkey on metering.repeated_batches is
  'goldleaves lint key_without_organization: nobody but the kernel writes or reads it';
comment on index metering.repeated_batches_recorded is
  'goldleaves lint key_without_organization: it is read for all organizations, by the time';

-- A rejected event is mended and replayed, or dismissed, by the provider's staff.
alter table metering.rejected_events
  add column resolved_at timestamptz,
  add column resolution text check (resolution in ('replayed', 'dismissed')),
  add check ((resolved_at is null) = (resolution is null));

comment on table metering.meter_versions is
  'goldleaves lint shared_table_without_row_security: meters are the same for everybody, and no tenant writes them';
comment on table metering.rollup_position is
  'goldleaves lint shared_table_without_row_security: one position for everybody, and only the kernel reads or writes it';

-- The platform's own organization: traffic that is nobody's is metered there. It has no members and is never billed.
alter table tenancy.organizations
  alter column owner_user_id drop not null,
  drop constraint organizations_kind_check,
  add constraint organizations_kind_check check (kind in ('personal', 'organization', 'platform')),
  add constraint organizations_owner_check check ((kind = 'platform') = (owner_user_id is null)),
  add constraint organizations_platform_check check ((kind = 'platform') = (id = '00000000-0000-0000-0000-000000000000'));

-- Row security holds for the owner too, once the policies are there.
alter table tenancy.organizations no force row level security;
insert into tenancy.organizations (id, kind, name, slug)
select
  '00000000-0000-0000-0000-000000000000', 'platform', 'Platform',
  case when exists (select from tenancy.organizations where slug = 'platform') then 'platform-' || left(md5(random()::text), 8) else 'platform' end;
alter table tenancy.organizations force row level security;

reset role;
