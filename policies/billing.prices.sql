-- Prices are read by the functions that rate usage and by nobody else; events and invoices show what a unit costs.
grant select, insert on billing.prices to goldleaves_kernel;
