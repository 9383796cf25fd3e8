-- $table: the id of a row is fixed, who made it and when is ours to say, and each change is in the audit log.
create or replace trigger refuse_new_id before update on $table
  for each row when (old.id is distinct from new.id) execute function tenancy.refuse_new_id();
create or replace trigger keep_stamps before insert or update on $table
  for each row when (current_user = 'member') execute function tenancy.keep_stamps();
select audit.watch('$table', '$target', '{id}', p_personal => '{*}');
