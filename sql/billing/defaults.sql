-- TRIAL_DAYS, PAST_DUE_GRACE_DAYS and INVOICE_MODE, written with every migration run, as the migrator.
create or replace function billing.set_defaults(p_trial_days integer, p_past_due_grace_days integer, p_invoice_mode text)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update billing.defaults d
  set trial_days = p_trial_days, past_due_grace_days = p_past_due_grace_days, invoice_mode = p_invoice_mode
  where (d.trial_days, d.past_due_grace_days, d.invoice_mode) is distinct from (p_trial_days, p_past_due_grace_days, p_invoice_mode)
$$;

alter function billing.set_defaults(integer, integer, text) owner to goldleaves_kernel;
