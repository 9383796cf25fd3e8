-- Currencies are ISO 4217's, the same for everybody.
grant select on billing.currencies to goldleaves_kernel;
