-- What meters were, and from when on: read by the functions that count usage.
grant select, insert on metering.meter_versions to goldleaves_kernel;
