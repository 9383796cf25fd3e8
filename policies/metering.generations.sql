-- Which clusters have held this database. The functions that record usage look whether it is still the same one.
grant select on metering.generations to goldleaves_kernel;
