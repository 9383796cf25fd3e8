-- Features that Stripe says a customer has. Only what applies webhooks touches it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (feature) values ('isolation')
alter table stripe.entitlements enable row level security;
alter table stripe.entitlements force row level security;

create policy entitlements_kernel on stripe.entitlements to goldleaves_kernel using (true) with check (true);

grant select, insert, delete on stripe.entitlements to goldleaves_kernel;
