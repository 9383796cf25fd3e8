-- An organization always has an owner, and a personal one no other than the person it was made for: whoever asks, and by direct
-- SQL. Outside READ COMMITTED the lock of the remaining owner raises 40001, where a snapshot from before would show one who has gone.
create or replace function tenancy.keep_an_owner()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_kind text;
begin
  if tg_op = 'UPDATE'
    and new.role = 'owner'
    and (new.organization_id, new.user_id) = (old.organization_id, old.user_id)
  then
    return new;
  end if;

  perform tenancy.lock_people(old.organization_id);
  perform from tenancy.memberships
  where organization_id = old.organization_id
    and user_id <> old.user_id
    and role = 'owner'
  limit 1
  for share;
  if found then
    return coalesce(new, old);
  end if;

  select kind into v_kind from tenancy.organizations where id = old.organization_id;
  if not found then
    -- Memberships go with their organization.
    return coalesce(new, old);
  elsif v_kind = 'personal' then
    raise exception using
      errcode = 'PT409',
      message = 'PERSONAL_OWNER: a personal organization stays with the person it was made for',
      hint = 'Call convert_to_organization first, or delete it.';
  end if;
  raise exception using
    errcode = 'PT409',
    message = 'LAST_OWNER: an organization always has an owner',
    hint = 'Make somebody else an owner first.';
end;
$$;

create or replace function tenancy.refuse_other_owners()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if exists (
    select from tenancy.organizations
    where id = new.organization_id
      and kind = 'personal'
      and billing_user_id <> new.user_id
  ) then
    raise exception using
      errcode = 'PT409',
      message = 'PERSONAL_OWNER: only the person it was made for owns a personal organization',
      hint = 'Call convert_to_organization first.';
  end if;
  return new;
end;
$$;

-- organizations.owner_user_id is one of the owners.
create or replace function tenancy.name_another_owner()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  update tenancy.organizations o
  set owner_user_id = (
    select m.user_id
    from tenancy.memberships m
    where m.organization_id = o.id
      and m.role = 'owner'
    order by m.created_at, m.user_id
    limit 1
  )
  where o.id = old.organization_id
    and o.owner_user_id = old.user_id
    and not exists (
      select from tenancy.memberships m
      where m.organization_id = o.id
        and m.user_id = old.user_id
        and m.role = 'owner'
    );
  return null;
end;
$$;

alter function tenancy.keep_an_owner() owner to goldleaves_kernel;
alter function tenancy.refuse_other_owners() owner to goldleaves_kernel;
alter function tenancy.name_another_owner() owner to goldleaves_kernel;

create or replace trigger keep_an_owner before update or delete on tenancy.memberships
  for each row when (old.role = 'owner') execute function tenancy.keep_an_owner();
create or replace trigger refuse_other_owners before insert or update on tenancy.memberships
  for each row when (new.role = 'owner') execute function tenancy.refuse_other_owners();
create or replace trigger name_another_owner after update or delete on tenancy.memberships
  for each row when (old.role = 'owner') execute function tenancy.name_another_owner();
