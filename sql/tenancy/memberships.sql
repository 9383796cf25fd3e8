-- Who belongs to an organization with which role. Whoever changes that holds the lock of the organization's people first and reads
-- in a later statement, so that of two who change each other, or of a removal and an acceptance, the second knows of the first.

create or replace function tenancy.lock_people(p_organization_id uuid)
returns void
language sql
volatile
set search_path = ''
as $$ select pg_advisory_xact_lock(hashtextextended('goldleaves.people.' || p_organization_id, 0)) $$;

-- Which roles there are is said once, by the check of memberships.role, and a migration may add one of your own (docs/dba.md): it may
-- then do what policies name it for, and nothing else. None when the check is no list, so that nobody gives any.
create or replace function tenancy.roles()
returns text[]
language sql
stable
set search_path = ''
as $$
  select array(
    select jsonb_array_elements_text(ops.allowed_values(a.attrelid, a.attnum, a.atttypid))
    from pg_attribute a
    where a.attrelid = 'tenancy.memberships'::regclass
      and a.attname = 'role'
  )
$$;

-- The roles that somebody may give, take and invite for. Nobody grants more than they have: what each may do is the policies'
-- business, and tests compare this list with it.
create or replace function tenancy.roles_granted_by(p_role text)
returns text[]
language sql
stable
set search_path = ''
as $$
  select case p_role
    when 'owner' then tenancy.roles()
    when 'admin' then array_remove(tenancy.roles(), 'owner')
    else '{}'
  end
$$;

-- The caller's role as it is now, under the lock: the one in the settings is from before it.
create or replace function tenancy.require_member()
returns text
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_role text;
begin
  if tenancy.current_user_id() is null then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only people of the organization do this, with a token of role member';
  end if;
  perform tenancy.require_organization();
  perform tenancy.lock_people(tenancy.current_org());

  select m.role into v_role
  from tenancy.memberships m
  where m.organization_id = tenancy.current_org()
    and m.user_id = tenancy.current_user_id();
  if v_role is null then
    raise exception using
      errcode = 'PT403',
      message = format('NOT_A_MEMBER: you are not a member of organization %s', tenancy.current_org()),
      hint = 'GET /organizations without X-Organization-ID lists yours.';
  end if;
  return v_role;
end;
$$;

-- Returns the caller's role, an owner's or admin's.
create or replace function tenancy.require_manager()
returns text
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_role text := tenancy.require_member();
begin
  if tenancy.roles_granted_by(v_role) = '{}' then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only owners and admins invite people and change roles',
      hint = 'Ask an owner or admin of the organization.';
  end if;
  return v_role;
end;
$$;

create or replace function tenancy.require_role(p_role text)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if p_role is null or p_role <> all (tenancy.roles()) then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_ROLE: %s is not a role', coalesce(left(p_role, 80), 'null')),
      hint = 'Use ' || array_to_string(tenancy.roles(), ', ') || '.';
  end if;
end;
$$;

create or replace function tenancy.require_granted_by(p_manager_role text, p_role text)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if p_role <> all (tenancy.roles_granted_by(p_manager_role)) then
    raise exception using
      errcode = 'PT403',
      message = format('ROLE_REQUIRED: only owners make, change and invite somebody with role %s', p_role),
      hint = 'Ask an owner of the organization.';
  end if;
end;
$$;

create or replace function tenancy.find_member(p_user_id uuid)
returns tenancy.memberships
language plpgsql
stable
set search_path = ''
as $$
declare
  v_membership tenancy.memberships;
begin
  select * into v_membership
  from tenancy.memberships
  where organization_id = tenancy.current_org()
    and user_id = p_user_id;
  if v_membership.user_id is null then
    raise exception using
      errcode = 'PT404',
      message = format('MEMBER_NOT_FOUND: nobody with user_id %s belongs to the organization', coalesce(p_user_id::text, 'null')),
      hint = 'GET /memberships lists who does.';
  end if;
  return v_membership;
end;
$$;

create or replace function tenancy.change_member_role(p_user_id uuid, p_role text)
returns tenancy.memberships
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_manager_role text := tenancy.require_manager();
  v_membership tenancy.memberships;
begin
  perform tenancy.require_role(p_role);
  v_membership := tenancy.find_member(p_user_id);
  perform tenancy.require_granted_by(v_manager_role, v_membership.role);
  perform tenancy.require_granted_by(v_manager_role, p_role);

  update tenancy.memberships
  set role = p_role
  where organization_id = v_membership.organization_id
    and user_id = v_membership.user_id
  returning * into v_membership;
  return v_membership;
end;
$$;

create or replace function tenancy.remove_member(p_user_id uuid)
returns tenancy.memberships
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_membership tenancy.memberships;
begin
  if tenancy.require_member() <> 'owner' then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only owners remove people',
      hint = 'To go yourself, call leave_organization.';
  end if;
  v_membership := tenancy.find_member(p_user_id);

  delete from tenancy.memberships
  where organization_id = v_membership.organization_id
    and user_id = v_membership.user_id;
  return v_membership;
end;
$$;

create or replace function tenancy.leave_organization()
returns tenancy.memberships
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_membership tenancy.memberships;
begin
  perform tenancy.require_member();

  delete from tenancy.memberships
  where organization_id = tenancy.current_org()
    and user_id = tenancy.current_user_id()
  returning * into v_membership;
  return v_membership;
end;
$$;

-- The new owner comes first, so that there is one at any moment.
create or replace function tenancy.transfer_ownership(p_user_id uuid)
returns tenancy.memberships
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_membership tenancy.memberships;
begin
  if tenancy.require_member() <> 'owner' then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only owners hand over an organization',
      hint = 'Ask an owner of the organization.';
  end if;
  v_membership := tenancy.find_member(p_user_id);

  update tenancy.memberships
  set role = 'owner'
  where organization_id = v_membership.organization_id
    and user_id = v_membership.user_id
  returning * into v_membership;
  update tenancy.organizations set owner_user_id = p_user_id where id = v_membership.organization_id;
  update tenancy.memberships
  set role = 'admin'
  where organization_id = v_membership.organization_id
    and user_id = tenancy.current_user_id()
    and user_id <> p_user_id;
  return v_membership;
end;
$$;

-- What members write directly, by PATCH and DELETE, takes the lock as well, before it locks any row: the functions above lock in
-- this order. Deleting an organization deletes its memberships.
create or replace function tenancy.lock_current_people()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  if tenancy.current_org() is not null then
    perform tenancy.lock_people(tenancy.current_org());
  end if;
  return null;
end;
$$;

create or replace trigger lock_current_people before update or delete on tenancy.memberships
  for each statement when (current_user = 'member') execute function tenancy.lock_current_people();
create or replace trigger lock_current_people before delete on tenancy.organizations
  for each statement when (current_user = 'member') execute function tenancy.lock_current_people();

-- The policies compare the role that the caller had when the request began. While it waited for the lock they may have lost it.
create or replace function tenancy.refuse_lost_role()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  if not exists (
    select from tenancy.memberships m
    where m.organization_id = tenancy.current_org()
      and m.user_id = tenancy.current_user_id()
      and tenancy.current_role_in(m.role)
  ) then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: your own role in the organization has just changed',
      hint = 'GET /memberships says what it is now.';
  end if;
  return coalesce(new, old);
end;
$$;

create or replace trigger refuse_lost_role before update or delete on tenancy.memberships
  for each row when (current_user = 'member') execute function tenancy.refuse_lost_role();
create or replace trigger refuse_lost_role before delete on tenancy.organizations
  for each row when (current_user = 'member') execute function tenancy.refuse_lost_role();

alter function tenancy.change_member_role(uuid, text) owner to goldleaves_kernel;
alter function tenancy.remove_member(uuid) owner to goldleaves_kernel;
alter function tenancy.leave_organization() owner to goldleaves_kernel;
alter function tenancy.transfer_ownership(uuid) owner to goldleaves_kernel;
alter function tenancy.lock_current_people() owner to goldleaves_kernel;
grant execute on function tenancy.lock_people(uuid), tenancy.roles(), tenancy.roles_granted_by(text), tenancy.require_member(),
  tenancy.require_manager(), tenancy.require_role(text), tenancy.require_granted_by(text, text), tenancy.find_member(uuid)
  to goldleaves_kernel;
grant execute on function tenancy.change_member_role(uuid, text), tenancy.remove_member(uuid), tenancy.leave_organization(),
  tenancy.transfer_ownership(uuid) to member, service, platform_admin;
