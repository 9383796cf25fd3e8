-- Meters: what is counted, and how. Everybody reads them; the provider's staff makes, changes and deletes them.
create view api.meters with (security_invoker) as
select
  code, event_name, aggregation, value, filter, group_by, max_groups, allow_negative, unit, unit_size, description, version,
  nullif(effective_from, '-infinity') as effective_from, created_at, deleted_at
from metering.meters;

comment on view api.meters is 'What is counted, and how: a meter a row, as it is now.';
comment on column api.meters.code is 'What usage_summary, usage_report and invoices call it.';
comment on column api.meters.event_name is 'The events that it counts, such as api.request; null: every event that weighs something.';
comment on column api.meters.aggregation is 'sum, count, max, min, latest, unique (different values), or weighted_sum (what a level comes to over hours).';
comment on column api.meters.value is 'What of an event is read: quantity, weighted_units, user_id, workspace_id, resource_id, or dimensions.<name>.';
comment on column api.meters.filter is 'Only events whose dimensions have these values count: {"model": ["large", "small"]}.';
comment on column api.meters.group_by is 'Dimensions that it keeps: usage can be grouped by them.';
comment on column api.meters.max_groups is 'How many groups an organization may have in a period; what comes after them is in the group "other".';
comment on column api.meters.allow_negative is 'Whether events may have negative quantities.';
comment on column api.meters.unit is 'What quantities are in.';
comment on column api.meters.unit_size is 'How much of the value is one unit: 1073741824 bytes are a GiB.';
comment on column api.meters.description is 'What invoices say.';
comment on column api.meters.version is 'How often it was changed, from 1.';
comment on column api.meters.effective_from is 'What happened from then on counts as this says (UTC), what happened before as the version before; null: whenever it happened.';
comment on column api.meters.created_at is 'What was recorded before is not counted (UTC).';
comment on column api.meters.deleted_at is 'What is recorded from then on is not counted (UTC); null while it counts.';

grant select on api.meters to member, service, platform_admin;

create view api.meter_versions with (security_invoker) as
select
  meter_code as meter, version, event_name, value, filter, group_by, max_groups, allow_negative,
  nullif(effective_from, '-infinity') as effective_from, counts, created_at
from metering.meter_versions;

comment on view api.meter_versions is 'What meters were, and since when. For platform_admin. An event counts by the last version that was made before it was recorded and is effective when it happened.';
comment on column api.meter_versions.meter is 'Code of the meter.';
comment on column api.meter_versions.version is 'From 1; each change that alters what counts is one.';
comment on column api.meter_versions.event_name is 'The events that it counts; null: every event that weighs something.';
comment on column api.meter_versions.value is 'What of an event is read.';
comment on column api.meter_versions.filter is 'Only events whose dimensions have these values count.';
comment on column api.meter_versions.group_by is 'Dimensions that it keeps.';
comment on column api.meter_versions.max_groups is 'How many groups an organization may have in a period.';
comment on column api.meter_versions.allow_negative is 'Whether events may have negative quantities.';
comment on column api.meter_versions.effective_from is 'For what happened from then on (UTC); null: whenever it happened.';
comment on column api.meter_versions.counts is 'False from the deletion of the meter on.';
comment on column api.meter_versions.created_at is 'For what was recorded from then on (UTC).';

grant select on api.meter_versions to platform_admin;

create function api.create_meter(
  code text,
  unit text,
  description text,
  event_name text default null,
  aggregation text default 'sum',
  value text default 'quantity',
  filter jsonb default '{}',
  group_by text[] default '{}',
  max_groups integer default 1000,
  allow_negative boolean default false,
  unit_size numeric default 1,
  effective_from timestamptz default null
)
returns api.meters
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('defines meters', 'GET /meters says what is metered.');
  perform metering.create_meter(
    create_meter.code, create_meter.event_name, create_meter.aggregation, create_meter.value, create_meter.filter, create_meter.group_by,
    create_meter.max_groups, create_meter.allow_negative, create_meter.unit, create_meter.unit_size, create_meter.description,
    create_meter.effective_from
  );
  return (select m from api.meters m where m.code = create_meter.code);
end;
$$;

comment on function api.create_meter(text, text, text, text, text, text, jsonb, text[], integer, boolean, numeric, timestamptz) is
$$Define a meter

For platform_admin. It counts what is recorded from now on, never what was recorded before; with effective_from, only of that what
happened from then on. It is billed once it has a price. Arguments are what the columns of meters say. code, aggregation, unit and
unit_size stay as they are. event_name may be left out where value is weighted_units: then every event that weighs something
counts. Returns the meter as meters shows it.

Errors: INVALID_METER (400), ROLE_REQUIRED (403), METER_EXISTS (409).$$;

create function api.change_meter(
  code text,
  event_name text default null,
  value text default null,
  filter jsonb default null,
  group_by text[] default null,
  max_groups integer default null,
  allow_negative boolean default null,
  description text default null,
  effective_from timestamptz default null
)
returns api.meters
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('changes meters', 'GET /meters says what is metered.');
  perform metering.change_meter(
    change_meter.code, change_meter.event_name, change_meter.value, change_meter.filter, change_meter.group_by, change_meter.max_groups,
    change_meter.allow_negative, change_meter.description, change_meter.effective_from
  );
  return (select m from api.meters m where m.code = change_meter.code);
end;
$$;

comment on function api.change_meter(text, text, text, jsonb, text[], integer, boolean, text, timestamptz) is
$$Change what a meter counts, from a moment on

For platform_admin. Send only what changes. It makes a version: what was recorded so far, and what happened before effective_from,
counts as before. Without effective_from the change counts from now on, or together with one that is still to come. A new
description makes no version. Returns the meter as meters shows it.

Errors: INVALID_METER (400), ROLE_REQUIRED (403), METER_NOT_FOUND (404).$$;

create function api.delete_meter(code text)
returns api.meters
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('deletes meters', 'GET /meters says what is metered.');
  perform metering.delete_meter(delete_meter.code);
  return (select m from api.meters m where m.code = delete_meter.code);
end;
$$;

comment on function api.delete_meter(text) is $$Delete a meter

For platform_admin. Nothing that is recorded from now on is counted by it; what it has counted stays, and is billed. Its code is not
used again. Returns the meter as meters shows it.

Errors: ROLE_REQUIRED (403), METER_NOT_FOUND (404).$$;

grant execute on function
  api.create_meter(text, text, text, text, text, text, jsonb, text[], integer, boolean, numeric, timestamptz),
  api.change_meter(text, text, text, jsonb, text[], integer, boolean, text, timestamptz), api.delete_meter(text)
  to member, service, platform_admin;
