-- Voids, negative quantities and changed meters mean nothing to the version before: only while there are none does it go back.
set local role goldleaves_owner;
alter table metering.usage_events no force row level security;
alter table tenancy.organizations no force row level security;
alter table billing.billing_periods no force row level security;
do $$
begin
  if exists (select from metering.usage_events where event_type = 'void' or corrects is not null or quantity < 0) then
    raise exception 'there are corrected or negative usage events, which the version before would count wrong'
      using hint = 'Restore a backup instead.';
  end if;
  if exists (
    select from metering.meters
    where code not in ('api.request', 'doc.upload', 'doc.processed', 'traffic.bytes', 'storage.bytes', 'compute.units') or version > 1
  ) then
    raise exception 'there are meters that were made or changed, which the version before would count wrong'
      using hint = 'Restore a backup instead.';
  end if;
end
$$;

drop table metering.repeated_batches;
drop table metering.operation_weights;
drop table metering.storage_snapshots;
drop table metering.unique_values;
drop table metering.usage_rollups;
drop table metering.rollup_position;
drop table metering.meter_versions;
drop index metering.usage_events_recorded;
alter table metering.event_keys drop column occurred_at;
alter table metering.rejected_events drop column resolution, drop column resolved_at;
alter table metering.usage_events
  drop constraint usage_events_belongs_check,
  drop constraint usage_events_event_type_check,
  drop column metered_at,
  drop column corrects,
  drop column weighted_units,
  drop column context,
  drop column workspace_id,
  add constraint usage_events_event_type_check check (event_type in ('usage', 'adjustment')),
  add constraint usage_events_check check ((event_type = 'adjustment') = (belongs_at is not null));

delete from metering.meters where code in ('traffic.bytes', 'storage.bytes', 'compute.units');
alter table metering.meters
  drop column deleted_at, drop column version, drop column effective_from, drop column unit_size, drop column allow_negative,
  drop column max_groups, drop column group_by, drop column filter, drop column value,
  drop constraint meters_aggregation_check,
  add constraint meters_aggregation_check check (aggregation in ('sum', 'count')),
  alter column event_name set not null,
  add constraint meters_event_name_key unique (event_name);

-- What it has of traffic stays, as that of an organization that is gone.
delete from billing.billing_periods where organization_id = '00000000-0000-0000-0000-000000000000';
delete from tenancy.organizations where kind = 'platform';
alter table tenancy.organizations
  drop constraint organizations_platform_check,
  drop constraint organizations_owner_check,
  drop constraint organizations_kind_check,
  add constraint organizations_kind_check check (kind in ('personal', 'organization')),
  alter column owner_user_id set not null;
alter table billing.billing_periods force row level security;
alter table tenancy.organizations force row level security;
alter table metering.usage_events force row level security;
reset role;
