-- What a plan offers. Written by the provider's staff through schema api.
grant select, insert, update (kind, limit_value, description), delete on billing.plan_features to goldleaves_kernel;
