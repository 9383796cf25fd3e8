-- TRIAL_DAYS and PAST_DUE_GRACE_DAYS, written with every migration run, as the migrator.
create or replace function billing.set_defaults(p_trial_days integer, p_past_due_grace_days integer)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  update billing.defaults d
  set trial_days = p_trial_days, past_due_grace_days = p_past_due_grace_days
  where (d.trial_days, d.past_due_grace_days) is distinct from (p_trial_days, p_past_due_grace_days)
$$;

alter function billing.set_defaults(integer, integer) owner to goldleaves_kernel;
