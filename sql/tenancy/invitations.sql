-- The way into an organization is an invitation: somebody who may grant a role makes one for an e-mail address, and whoever signs in
-- with that address and the code gets a membership. Of the code, 128 random bits, only the hash is kept. It is good once, for a week.

-- E-mail addresses are compared like this. Only A to Z are lowered: in other alphabets letters that are not the same can become so.
create or replace function tenancy.normal_email(p_email text)
returns text
language sql
immutable
parallel safe
set search_path = ''
as $$ select lower(btrim(p_email) collate "C") $$;

-- A UUID has 122 random bits; two of them, condensed.
create or replace function tenancy.new_code()
returns text
language sql
volatile
set search_path = ''
as $$
  select encode(substr(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 1, 16), 'hex')
$$;

create or replace function tenancy.code_hash(p_code text)
returns bytea
language sql
immutable
parallel safe
set search_path = ''
as $$ select sha256(convert_to(lower(btrim(p_code)), 'UTF8')) $$;

create or replace function tenancy.invitation_lifetime()
returns interval
language sql
immutable
parallel safe
as $$ select interval '7 days' $$;

create or replace function tenancy.create_invitation(
  p_email text, p_role text, out p_invitation tenancy.invitations, out p_code text
)
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_manager_role text := tenancy.require_manager();
  v_email text := tenancy.normal_email(p_email);
begin
  -- Messages go to the log of the database, and name no address.
  if v_email is null or v_email !~ '^[^@[:space:][:cntrl:]]+@[^@[:space:][:cntrl:]]+$' or length(v_email) > 320 then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_EMAIL: email is no e-mail address',
      hint = 'It looks like ada@example.com.';
  end if;
  perform tenancy.require_role(p_role);
  perform tenancy.require_granted_by(v_manager_role, p_role);
  if p_role = 'owner' and exists (select from tenancy.organizations where id = tenancy.current_org() and kind = 'personal') then
    raise exception using
      errcode = 'PT409',
      message = 'PERSONAL_OWNER: only the person it was made for owns a personal organization',
      hint = 'Call convert_to_organization first.';
  end if;
  if exists (
    select
    from tenancy.memberships m
    join tenancy.users u on u.id = m.user_id
    where m.organization_id = tenancy.current_org()
      and tenancy.normal_email(u.email) = v_email
  ) then
    raise exception using
      errcode = 'PT409',
      message = 'ALREADY_A_MEMBER: somebody with this e-mail address belongs to the organization',
      hint = 'Change their role with change_member_role.';
  end if;

  -- One that has expired gives way.
  update tenancy.invitations
  set revoked_at = now()
  where organization_id = tenancy.current_org()
    and email = v_email
    and accepted_at is null
    and revoked_at is null
    and expires_at <= now();

  p_code := tenancy.new_code();
  insert into tenancy.invitations (organization_id, email, role, code_sha256, invited_by, expires_at)
  values (
    tenancy.current_org(), v_email, p_role, tenancy.code_hash(p_code), tenancy.current_user_id(), now() + tenancy.invitation_lifetime()
  )
  on conflict (organization_id, email) where accepted_at is null and revoked_at is null do nothing
  returning * into p_invitation;
  if p_invitation.id is null then
    raise exception using
      errcode = 'PT409',
      message = 'INVITATION_PENDING: somebody with this e-mail address has been invited already',
      hint = 'Send the invitation again with resend_invitation, or revoke it with revoke_invitation first.';
  end if;
end;
$$;

-- A pending invitation of the current organization that the caller could have made.
create or replace function tenancy.find_pending_invitation(p_id uuid)
returns tenancy.invitations
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_manager_role text := tenancy.require_manager();
  v_invitation tenancy.invitations;
begin
  select * into v_invitation
  from tenancy.invitations
  where organization_id = tenancy.current_org()
    and id = p_id;
  if v_invitation.id is null then
    raise exception using
      errcode = 'PT404',
      message = format('INVITATION_NOT_FOUND: the organization has no invitation %s', coalesce(p_id::text, 'null')),
      hint = 'GET /pending_invitations lists them.';
  end if;
  perform tenancy.require_granted_by(v_manager_role, v_invitation.role);
  if v_invitation.accepted_at is not null then
    raise exception using
      errcode = 'PT409',
      message = 'INVITATION_USED: the invitation has been accepted',
      hint = 'Whoever accepted it is in GET /memberships.';
  elsif v_invitation.revoked_at is not null then
    raise exception using
      errcode = 'PT410',
      message = 'INVITATION_REVOKED: the invitation has been revoked',
      hint = 'Make a new one with create_invitation.';
  end if;
  return v_invitation;
end;
$$;

create or replace function tenancy.resend_invitation(p_id uuid, out p_invitation tenancy.invitations, out p_code text)
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  p_invitation := tenancy.find_pending_invitation(p_id);
  p_code := tenancy.new_code();
  update tenancy.invitations
  set code_sha256 = tenancy.code_hash(p_code),
    sent_at = now(),
    expires_at = now() + tenancy.invitation_lifetime()
  where organization_id = p_invitation.organization_id
    and id = p_invitation.id
  returning * into p_invitation;
end;
$$;

create or replace function tenancy.revoke_invitation(p_id uuid)
returns tenancy.invitations
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_invitation tenancy.invitations := tenancy.find_pending_invitation(p_id);
begin
  update tenancy.invitations
  set revoked_at = now()
  where organization_id = v_invitation.organization_id
    and id = v_invitation.id;
  return v_invitation;
end;
$$;

-- The e-mail address is the one that the identity provider vouches for. Somebody else who holds a code learns nothing of what
-- became of it.
create or replace function tenancy.accept_invitation(p_code text)
returns tenancy.organizations
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_claims jsonb := coalesce(nullif(current_setting('request.jwt.claims', true), ''), '{}')::jsonb;
  v_organization tenancy.organizations;
  v_invitation tenancy.invitations;
  v_inviter_role text;
  v_user_id uuid;
begin
  if current_setting('role', true) is distinct from 'member'
    or nullif(v_claims ->> 'sub', '') is null
    or nullif(current_setting('app.current_key_id', true), '') is not null
  then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only people accept invitations, with a token of role member';
  end if;

  select o.* into v_organization
  from tenancy.invitations i
  join tenancy.organizations o on o.id = i.organization_id
  where i.code_sha256 = tenancy.code_hash(p_code);
  if v_organization.id is not null then
    perform tenancy.lock_people(v_organization.id);
    select * into v_invitation
    from tenancy.invitations
    where organization_id = v_organization.id
      and code_sha256 = tenancy.code_hash(p_code);
  end if;
  if v_invitation.id is null then
    raise exception using
      errcode = 'PT404',
      message = 'INVITATION_NOT_FOUND: there is no invitation with this code',
      hint = 'When an invitation is sent again, only its newest code is good.';
  end if;

  if tenancy.normal_email(v_claims ->> 'email') is distinct from v_invitation.email then
    raise exception using
      errcode = 'PT403',
      message = 'INVITATION_EMAIL_MISMATCH: the invitation is for another e-mail address than that of the token',
      hint = 'Sign in with the address that the invitation was sent to.';
  end if;
  if not tenancy.email_is_verified(v_claims) then
    raise exception using
      errcode = 'PT403',
      message = 'EMAIL_NOT_VERIFIED: the identity provider has not verified the e-mail address of the token',
      hint = 'Verify the address, then sign in again.';
  end if;

  select m.role into v_inviter_role
  from tenancy.memberships m
  where m.organization_id = v_invitation.organization_id
    and m.user_id = v_invitation.invited_by;
  if v_invitation.accepted_at is not null then
    raise exception using
      errcode = 'PT409',
      message = 'INVITATION_USED: the invitation has been accepted already',
      hint = 'GET /organizations lists yours. If it was not you, ask an owner or admin of the organization.';
  elsif v_invitation.revoked_at < v_invitation.expires_at
    or v_invitation.role <> all (tenancy.roles_granted_by(v_inviter_role))
  then
    raise exception using
      errcode = 'PT410',
      message = 'INVITATION_REVOKED: the invitation has been taken back',
      hint = 'Ask an owner or admin of the organization for a new one.';
  elsif v_invitation.expires_at <= now() then
    raise exception using
      errcode = 'PT410',
      message = format('INVITATION_EXPIRED: the invitation was good until %s', v_invitation.expires_at),
      hint = 'Ask an owner or admin of the organization to send it again.';
  end if;

  v_user_id := tenancy.provision_user(v_claims ->> 'sub', v_claims ->> 'email');
  -- Others know them by this one from now on. What they came with first need not have been verified.
  perform tenancy.note_email(v_user_id, v_claims ->> 'email');
  insert into tenancy.memberships (organization_id, user_id, role)
  values (v_invitation.organization_id, v_user_id, v_invitation.role)
  on conflict (organization_id, user_id) do nothing;
  if not found then
    raise exception using
      errcode = 'PT409',
      message = format('ALREADY_A_MEMBER: you belong to %s', v_organization.slug),
      hint = 'Send its id as X-Organization-ID to act in it.';
  end if;

  update tenancy.invitations
  set accepted_at = now(),
    accepted_by = v_user_id
  where organization_id = v_invitation.organization_id
    and id = v_invitation.id
    and revoked_at is null;
  if not found then
    -- By direct SQL, which need not hold the lock.
    raise exception using
      errcode = 'PT410',
      message = 'INVITATION_REVOKED: the invitation has been taken back',
      hint = 'Ask an owner or admin of the organization for a new one.';
  end if;

  -- Somebody who was removed from their default organization has none that leads anywhere.
  update tenancy.users u
  set default_organization_id = v_invitation.organization_id
  where u.id = v_user_id
    and not exists (select from tenancy.memberships m where m.user_id = u.id and m.organization_id = u.default_organization_id);
  return v_organization;
end;
$$;

-- Whoever loses a role loses the invitations that it let them make: nobody comes back through the side door.
create or replace function tenancy.revoke_invitations_of_lost_role()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  update tenancy.invitations i
  set revoked_at = now()
  where i.organization_id = old.organization_id
    and i.invited_by = old.user_id
    and i.accepted_at is null
    and i.revoked_at is null
    and i.role <> all (
      select unnest(tenancy.roles_granted_by(m.role))
      from tenancy.memberships m
      where m.organization_id = old.organization_id
        and m.user_id = old.user_id
    );
  return null;
end;
$$;

create or replace trigger revoke_invitations_of_lost_role after update or delete on tenancy.memberships
  for each row execute function tenancy.revoke_invitations_of_lost_role();

alter function tenancy.create_invitation(text, text) owner to goldleaves_kernel;
alter function tenancy.resend_invitation(uuid) owner to goldleaves_kernel;
alter function tenancy.revoke_invitation(uuid) owner to goldleaves_kernel;
alter function tenancy.accept_invitation(text) owner to goldleaves_kernel;
alter function tenancy.revoke_invitations_of_lost_role() owner to goldleaves_kernel;
grant execute on function tenancy.normal_email(text), tenancy.new_code(), tenancy.code_hash(text), tenancy.invitation_lifetime(),
  tenancy.find_pending_invitation(uuid) to goldleaves_kernel;
grant execute on function tenancy.create_invitation(text, text), tenancy.resend_invitation(uuid), tenancy.revoke_invitation(uuid),
  tenancy.accept_invitation(text) to member, service, platform_admin;
