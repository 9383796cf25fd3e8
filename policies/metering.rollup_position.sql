-- How far usage is rolled up. Only the functions that roll up and read usage touch it.
grant select, update (generation, xid, moved_at) on metering.rollup_position to goldleaves_kernel;
