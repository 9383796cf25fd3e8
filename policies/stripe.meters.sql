-- Which meters Stripe has. Only the functions of reports touch it.
grant select, insert, update (id, event_name) on stripe.meters to goldleaves_kernel;
