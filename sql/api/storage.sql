-- How much is stored, day by day.
create view api.storage_snapshots with (security_invoker) as
select organization_id, day, day_end, greatest(bytes, 0) as bytes, taken_at
from metering.storage_snapshots;

comment on view api.storage_snapshots is 'What the organization stored when each day ended, a day a row. What is recorded of a day later changes it only when the provider makes it anew.';
comment on column api.storage_snapshots.organization_id is 'Who stored it.';
comment on column api.storage_snapshots.day is 'The day, in the organization''s timezone.';
comment on column api.storage_snapshots.day_end is 'Its end (UTC): the first moment of the next day.';
comment on column api.storage_snapshots.bytes is 'Bytes stored at that moment; never below zero. Never null.';
comment on column api.storage_snapshots.taken_at is 'When this was added up (UTC).';

grant select on api.storage_snapshots to member, platform_admin;

create function api.remake_storage_snapshots(day date)
returns integer
language plpgsql
volatile
set search_path = ''
as $$
begin
  perform tenancy.require_staff('makes storage snapshots anew', 'GET /storage_snapshots shows those that are there.');
  return metering.remake_storage_snapshots(remake_storage_snapshots.day, tenancy.current_org());
end;
$$;

comment on function api.remake_storage_snapshots(date) is $$Add up anew what was stored when a day ended

For platform_admin. Of the organization that X-Organization-ID names, or else of all: for usage that was recorded, or corrected, after
the snapshot of its day was taken. Returns how many snapshots were made.

Errors: ROLE_REQUIRED (403), ORGANIZATION_NOT_FOUND (404), DAY_NOT_ENDED (409).$$;

grant execute on function api.remake_storage_snapshots(date) to member, service, platform_admin;
