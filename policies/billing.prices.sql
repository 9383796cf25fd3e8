-- Prices are the same for everybody. Only the provider's staff reads all of them, and makes them through schema api; what counts is shown by
-- the view plans, by events and by invoices.
grant select on billing.prices to platform_admin;
grant select, insert on billing.prices to goldleaves_kernel;
