-- TRIAL_DAYS and PAST_DUE_GRACE_DAYS, which a migration run writes. The functions of subscriptions read them.
grant select, update (trial_days, past_due_grace_days) on billing.defaults to goldleaves_kernel;
