-- Checkouts that were begun. Only the functions of checkouts and webhooks touch it.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- a row: (id, plan_code, created_by) values (ops.new_id(), 'pro', 'isolation')
alter table stripe.checkout_sessions enable row level security;
alter table stripe.checkout_sessions force row level security;

create policy checkout_sessions_kernel on stripe.checkout_sessions to goldleaves_kernel using (true) with check (true);

grant select, insert on stripe.checkout_sessions to goldleaves_kernel;
