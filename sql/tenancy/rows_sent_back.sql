-- Clients read a row, change a field and send the whole row back, in a PATCH or an upsert. Postgres asks for the right to update
-- every column that is sent, so members hold it also on columns that are not theirs to change, and these triggers keep those as
-- they are. organization_id needs none: row-level security lets only the current one pass.

-- A row is known by its id: usage is recorded for it, and metering joins what a row was with what it is by it.
create or replace function tenancy.refuse_new_id()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('ID_IS_FIXED: the id of a row of %s cannot change', tg_table_name),
    hint = 'Leave id out, or send the one that the row has. For a row with another id, insert a new one.';
end;
$$;

-- What is sent is ignored and not refused: of an upsert, Postgres shows the row to be inserted before it looks whether there is
-- one, and the created_at of a row that is there would look like a wrong one of a row that is new.
create or replace function tenancy.keep_stamps()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  if tg_op = 'INSERT' then
    new.created_by := tenancy.current_user_id();
    new.created_at := now();
  else
    new.created_by := old.created_by;
    new.created_at := old.created_at;
  end if;
  return new;
end;
$$;

create or replace trigger refuse_new_id before update on app.clients
  for each row when (old.id is distinct from new.id) execute function tenancy.refuse_new_id();
create or replace trigger refuse_new_id before update on app.cases
  for each row when (old.id is distinct from new.id) execute function tenancy.refuse_new_id();
create or replace trigger refuse_new_id before update on app.documents
  for each row when (old.id is distinct from new.id) execute function tenancy.refuse_new_id();
create or replace trigger refuse_new_id before update on tenancy.workspaces
  for each row when (old.id is distinct from new.id) execute function tenancy.refuse_new_id();

-- For members alone: whoever imports rows brings the stamps with them.
create or replace trigger keep_stamps before insert or update on app.clients
  for each row when (current_user = 'member') execute function tenancy.keep_stamps();
create or replace trigger keep_stamps before insert or update on app.cases
  for each row when (current_user = 'member') execute function tenancy.keep_stamps();
create or replace trigger keep_stamps before insert or update on app.documents
  for each row when (current_user = 'member') execute function tenancy.keep_stamps();
create or replace trigger keep_stamps before insert or update on tenancy.workspaces
  for each row when (current_user = 'member') execute function tenancy.keep_stamps();
