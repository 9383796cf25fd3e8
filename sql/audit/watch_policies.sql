-- Policies. A release writes down how each table it changed looks from now on; the log tells what it looked like before, too.
create or replace function audit.record_policy_release()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform audit.append(
    audit.platform(), 'policy.changed', 'policy', new.table_name,
    (select r.live from ops.policy_releases r where r.table_name = new.table_name and r.id < new.id order by r.id desc limit 1),
    new.live
  );
  return null;
end;
$$;

alter function audit.record_policy_release() owner to goldleaves_kernel;

create or replace trigger watch after insert on ops.policy_releases
  for each row execute function audit.record_policy_release();
create or replace trigger watch_changes before update or delete on ops.policy_releases
  for each row execute function audit.refuse_change();
create or replace trigger watch_truncate before truncate on ops.policy_releases
  for each statement execute function audit.refuse_change();
