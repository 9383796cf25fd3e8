-- Prices are public: what a unit of a meter costs from when on.
grant select on billing.prices to member, platform_admin;
grant select, insert on billing.prices to goldleaves_kernel;
