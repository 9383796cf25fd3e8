-- Which prices at Stripe are which plan: staff and a migration run write it, through functions.
grant select, insert, delete, update (plan_code, created_at) on stripe.plan_prices to goldleaves_kernel;
