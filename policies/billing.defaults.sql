-- TRIAL_DAYS, PAST_DUE_GRACE_DAYS and INVOICE_MODE, which a migration run writes. The functions of subscriptions read them.
grant select, update (trial_days, past_due_grace_days, invoice_mode) on billing.defaults to goldleaves_kernel;
