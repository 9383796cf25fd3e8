-- What meters were, and from when on: read by the functions that count usage, and by the provider's staff.
grant select on metering.meter_versions to platform_admin;
grant select, insert on metering.meter_versions to goldleaves_kernel;
