-- Meters are the same for everybody: what is metered and how. Functions for the provider's staff make and change them.
grant select on metering.meters to member, service, platform_admin;
grant select, insert, update (event_name, value, filter, group_by, max_groups, allow_negative, description, effective_from, deleted_at)
  on metering.meters to goldleaves_kernel;
