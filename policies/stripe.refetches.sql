-- What Stripe is asked for. Only the functions of the inbox touch it.
grant select, insert, delete, update (asked, attempts, next_attempt_at, last_error) on stripe.refetches to goldleaves_kernel;
