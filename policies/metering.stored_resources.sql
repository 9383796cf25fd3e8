-- Which tables' bytes are metered. metering.meter_table() writes it as the owner, and the kernel settles what it says.
grant select, update (counted_at, counted), delete on metering.stored_resources to goldleaves_kernel;
