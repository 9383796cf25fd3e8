-- Meters are the same for everybody: what is metered and how.
grant select on metering.meters to member, platform_admin, goldleaves_kernel;
