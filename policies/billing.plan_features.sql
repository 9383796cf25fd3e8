-- What a plan offers. Written by the provider's staff through schema api.
grant select, insert, update (kind, limit_value, enforcement, meter_code, description), delete on billing.plan_features to goldleaves_kernel;
