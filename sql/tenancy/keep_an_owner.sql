-- An organization always has an owner, also when two of them remove each other at the same moment.
create or replace function tenancy.keep_an_owner()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if tg_op = 'UPDATE' and new.role = 'owner' and new.organization_id = old.organization_id then
    return new;
  end if;

  -- Lock first, count in a later statement: whoever waited here counts what the other has left.
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.owners.' || old.organization_id, 0));
  if exists (
      select from tenancy.memberships
      where organization_id = old.organization_id
        and user_id <> old.user_id
        and role = 'owner'
    )
    -- Memberships go with their organization.
    or not exists (select from tenancy.organizations where id = old.organization_id)
  then
    return coalesce(new, old);
  end if;
  raise exception using
    errcode = 'PT409',
    message = 'LAST_OWNER: an organization always has an owner',
    hint = 'Make somebody else an owner first.';
end;
$$;

alter function tenancy.keep_an_owner() owner to goldleaves_kernel;

create or replace trigger keep_an_owner before update or delete on tenancy.memberships
  for each row when (old.role = 'owner') execute function tenancy.keep_an_owner();
