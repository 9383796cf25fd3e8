-- Plans are written by the provider's staff through schema api, and shown by the view plans where they are public.
grant select, insert, update (name, description, is_public, position) on billing.plans to goldleaves_kernel;
