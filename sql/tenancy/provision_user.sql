-- People come with a token of the identity provider. The first time one is seen, they get a user and a personal organization.

create or replace function tenancy.slugify(p_text text)
returns text
language sql
immutable
parallel safe
set search_path = ''
as $$
  -- At most 35 characters, so that it is never taken for a UUID, which has 36.
  select coalesce(nullif(btrim(left(regexp_replace(lower(p_text), '[^a-z0-9]+', '-', 'g'), 35), '-'), ''), 'personal')
$$;

-- A personal organization with its owner, who has it as default from now on.
create or replace function tenancy.found_personal_organization(p_user_id uuid, p_email text)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_organization_id uuid;
  v_name text := coalesce(nullif(btrim(left(split_part(p_email, '@', 1), 200)), ''), 'personal');
  v_slug text := tenancy.slugify(v_name);
begin
  loop
    insert into tenancy.organizations (kind, name, slug, owner_user_id, billing_user_id)
    values ('personal', v_name, v_slug, p_user_id, p_user_id)
    on conflict (slug) where slug is not null do nothing
    returning id into v_organization_id;
    exit when v_organization_id is not null;
    v_slug := tenancy.slugify(v_name) || '-' || left(replace(gen_random_uuid()::text, '-', ''), 6);
  end loop;

  insert into tenancy.memberships (organization_id, user_id, role) values (v_organization_id, p_user_id, 'owner');
  update tenancy.users set default_organization_id = v_organization_id where id = p_user_id;
end;
$$;

-- For somebody known who belongs nowhere, such as a user who was imported. Whoever has a default organization was removed from it:
-- they are told so (403), and not moved to another one behind their back. Signing in anew is what makes them one (p_even_if_removed).
create or replace function tenancy.ensure_default_organization(p_user_id uuid, p_even_if_removed boolean)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_email text;
begin
  -- Lock first, look in a later statement: of two who come at once, the second finds what the first has made.
  select email into v_email
  from tenancy.users
  where id = p_user_id
    and (default_organization_id is null or p_even_if_removed)
  for no key update;
  if found and not exists (select from tenancy.memberships where user_id = p_user_id) then
    perform tenancy.found_personal_organization(p_user_id, v_email);
  end if;
end;
$$;

-- Returns how many got one. People who are just signing in are left to that: waiting for them would be a deadlock when they wait for
-- a slug that was taken here.
create or replace function tenancy.ensure_default_organizations()
returns integer
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_user_id uuid;
  v_email text;
  v_made integer := 0;
begin
  perform pg_advisory_xact_lock(hashtextextended('goldleaves.default_organizations', 0));
  for v_user_id in
    select u.id
    from tenancy.users u
    where u.default_organization_id is null
      and not exists (select from tenancy.memberships m where m.user_id = u.id)
    order by u.id
  loop
    select email into v_email
    from tenancy.users
    where id = v_user_id
      and default_organization_id is null
    for no key update skip locked;
    if found and not exists (select from tenancy.memberships where user_id = v_user_id) then
      perform tenancy.found_personal_organization(v_user_id, v_email);
      v_made := v_made + 1;
    end if;
  end loop;
  return v_made;
end;
$$;

-- Safe to call at the same moment from many connections: one of them makes the user, the others wait for it and find it.
create or replace function tenancy.provision_user(p_subject text, p_email text)
returns uuid
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_user_id uuid;
  v_default_id uuid;
begin
  select id, default_organization_id into v_user_id, v_default_id from tenancy.users where subject = p_subject;
  if v_user_id is null then
    if length(p_subject) > 255 then
      raise exception using
        errcode = 'PT401',
        message = 'INVALID_TOKEN: a member''s token needs a subject of at most 255 characters';
    end if;
    insert into tenancy.users (subject, email) values (p_subject, p_email)
    on conflict (subject) do nothing
    returning id into v_user_id;
    if found then
      perform tenancy.found_personal_organization(v_user_id, p_email);
      return v_user_id;
    end if;
    select id, default_organization_id into strict v_user_id, v_default_id from tenancy.users where subject = p_subject;
  end if;

  if v_default_id is null then
    perform tenancy.ensure_default_organization(v_user_id, p_even_if_removed => false);
  end if;
  return v_user_id;
end;
$$;

-- The gateway asks who and for whom before it forwards a request, so that usage is recorded for the organization that
-- PostgREST will use. It learns no organization that the person is not a member of: organization_id is null then, also when there
-- is none. default_organization_id: what was meant where nothing was named.
create or replace function tenancy.identify(p_subject text, p_email text, p_role text, p_organization text)
returns table (user_id uuid, organization_id uuid, default_organization_id uuid)
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_user_id uuid;
begin
  if p_role in ('service', 'platform_admin') then
    return query select null::uuid, tenancy.find_organization(p_organization), null::uuid;
    return;
  end if;

  if p_role is distinct from 'member' or nullif(p_subject, '') is null then
    raise exception using
      errcode = 'PT401',
      message = 'INVALID_TOKEN: a member''s token needs a subject';
  end if;

  v_user_id := tenancy.provision_user(p_subject, p_email);
  return query
    select v_user_id, m.organization_id, u.default_organization_id
    from tenancy.users u
    left join tenancy.memberships m
      on m.user_id = u.id
      and m.organization_id = case when p_organization is null then u.default_organization_id else tenancy.find_organization(p_organization) end
    where u.id = v_user_id;
end;
$$;

-- An address that the identity provider has verified, if the token has one. The audit log names people by it.
create or replace function tenancy.note_email(p_user_id uuid, p_email text)
returns void
language sql
volatile
set search_path = ''
as $$ update tenancy.users set email = p_email where id = p_user_id and p_email is not null and email is distinct from p_email $$;

-- Returns who the caller is now, and makes them known the first time.
create or replace function tenancy.sign_in()
returns jsonb
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_claims jsonb := coalesce(nullif(current_setting('request.jwt.claims', true), ''), '{}')::jsonb;
  v_subject text := v_claims ->> 'sub';
  v_user_id uuid;
begin
  if current_setting('role', true) is distinct from 'member' or nullif(v_subject, '') is null then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only people sign in, with a token of role member';
  end if;
  v_user_id := tenancy.provision_user(v_subject, v_claims ->> 'email');
  if not exists (select from tenancy.memberships where user_id = v_user_id) then
    perform tenancy.ensure_default_organization(v_user_id, p_even_if_removed => true);
  end if;
  if tenancy.email_is_verified(v_claims) then
    perform tenancy.note_email(v_user_id, v_claims ->> 'email');
  end if;

  return (
    select jsonb_build_object(
      'user_id', u.id,
      'email', u.email,
      'default_organization_id', u.default_organization_id,
      'organizations', (
        select coalesce(jsonb_agg(jsonb_build_object('id', o.id, 'slug', o.slug, 'name', o.name, 'role', m.role) order by o.created_at), '[]')
        from tenancy.memberships m
        join tenancy.organizations o on o.id = m.organization_id
        where m.user_id = u.id
      )
    )
    from tenancy.users u
    where u.id = v_user_id
  );
end;
$$;

alter function tenancy.provision_user(text, text) owner to goldleaves_kernel;
alter function tenancy.ensure_default_organizations() owner to goldleaves_kernel;
alter function tenancy.identify(text, text, text, text) owner to goldleaves_kernel;
alter function tenancy.sign_in() owner to goldleaves_kernel;
grant execute on function tenancy.slugify(text), tenancy.found_personal_organization(uuid, text),
  tenancy.ensure_default_organization(uuid, boolean), tenancy.note_email(uuid, text) to goldleaves_kernel;
grant execute on function tenancy.identify(text, text, text, text) to sidecar;
grant execute on function tenancy.sign_in() to member, service, platform_admin;
