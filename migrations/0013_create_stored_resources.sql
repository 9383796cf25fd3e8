-- Tables whose rows store bytes that are metered, by resource: from when on they were, and what the rows stored when that began, until it
-- is recorded as usage: {"<organization>": bytes}.
set local role goldleaves_owner;

create table metering.stored_resources (
  resource text primary key,
  began_at timestamptz not null,
  counted_at timestamptz,
  counted jsonb,
  check ((counted_at is null) = (counted is null))
);
comment on table metering.stored_resources is
  'goldleaves lint shared_table_without_row_security: resources of all organizations, and only the kernel reads it';

reset role;
