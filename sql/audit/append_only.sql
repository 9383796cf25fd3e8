-- The audit log only grows, whoever asks, its owner and a superuser at psql included. What is left to them is to disable these
-- triggers, and then `goldleaves audit verify` tells what they did.
create or replace function audit.refuse_change()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('AUDIT_APPEND_ONLY: %I.%I only grows', tg_table_schema, tg_table_name),
    hint = 'Entries are never changed or removed. `goldleaves audit erase` erases what they tell of people.';
end;
$$;

-- They fire in sessions with session_replication_role = replica as well.
create or replace trigger append_only before update or delete on audit.log
  for each row execute function audit.refuse_change();
create or replace trigger append_only_truncate before truncate on audit.log
  for each statement execute function audit.refuse_change();
alter table audit.log enable always trigger append_only, enable always trigger append_only_truncate;

-- Erasing is a function of the kernel, and nobody else's business.
create or replace trigger append_only before update on audit.personal
  for each row execute function audit.refuse_change();
create or replace trigger append_only_delete before delete on audit.personal
  for each row when (current_user <> 'goldleaves_kernel') execute function audit.refuse_change();
create or replace trigger append_only_truncate before truncate on audit.personal
  for each statement execute function audit.refuse_change();
alter table audit.personal
  enable always trigger append_only, enable always trigger append_only_delete, enable always trigger append_only_truncate;

-- The end of a chain moves on, and nowhere else.
create or replace trigger append_only before update on audit.heads
  for each row when (new.organization_id <> old.organization_id or new.position <= old.position) execute function audit.refuse_change();
create or replace trigger append_only_delete before delete on audit.heads
  for each row execute function audit.refuse_change();
create or replace trigger append_only_truncate before truncate on audit.heads
  for each statement execute function audit.refuse_change();
alter table audit.heads
  enable always trigger append_only, enable always trigger append_only_delete, enable always trigger append_only_truncate;

-- Nor is an entry taken back or changed before it is linked, by whoever made it. Linking deletes it, from within a trigger.
create or replace trigger append_only before update on audit.pending
  for each statement execute function audit.refuse_change();
create or replace trigger append_only_delete before delete on audit.pending
  for each statement when (pg_trigger_depth() = 0) execute function audit.refuse_change();
create or replace trigger append_only_truncate before truncate on audit.pending
  for each statement execute function audit.refuse_change();
alter table audit.pending
  enable always trigger append_only, enable always trigger append_only_delete, enable always trigger append_only_truncate;
