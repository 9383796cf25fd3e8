-- A personal organization has one workspace at most. What holds, for everybody and under any isolation level, is the unique key on its
-- only place (migration 0006); the trigger gives out that place, whatever was written there, and says so when it is taken.
create or replace function tenancy.limit_workspaces()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_kind text;
begin
  select kind into v_kind from tenancy.organizations where id = new.organization_id;

  -- Triggers come before policies. Whom these refuse learns nothing here about an organization, and locks none.
  if v_kind = 'personal' and (
    current_setting('role', true) <> 'member'
    or (new.organization_id = tenancy.current_org() and tenancy.current_role_in('owner', 'admin'))
  ) then
    -- Lock first, look in a later statement: whoever waited here sees the workspace of the other, or the conversion. Outside READ
    -- COMMITTED neither can be seen: then the lock raises 40001 after a conversion, and the key refuses a second workspace.
    select kind into v_kind from tenancy.organizations where id = new.organization_id for no key update;
    if v_kind = 'personal' and exists (
      select from tenancy.workspaces where organization_id = new.organization_id and id <> new.id
    ) then
      raise exception using
        errcode = 'PT403',
        message = 'WORKSPACE_LIMIT: PERSONAL accounts can only create one workspace. Upgrade to ORG for unlimited workspaces.',
        hint = 'POST /rpc/convert_to_organization makes it one; what is in it stays.';
    end if;
  end if;

  new.place := case v_kind when 'personal' then 1 end;
  return new;
end;
$$;

alter function tenancy.limit_workspaces() owner to goldleaves_kernel;

create or replace trigger limit_workspaces before insert or update of organization_id, place on tenancy.workspaces
  for each row execute function tenancy.limit_workspaces();
