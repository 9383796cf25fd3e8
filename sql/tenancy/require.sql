-- What a function asks for before it does anything.

create or replace function tenancy.require_organization()
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if tenancy.current_org() is null then
    raise exception using
      errcode = 'PT400',
      message = 'ORGANIZATION_REQUIRED: no organization was chosen',
      hint = 'Send X-Organization-ID (id or slug).';
  end if;
end;
$$;

create or replace function tenancy.require_name(p_name text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  if coalesce(length(btrim(p_name)), 0) not between 1 and 200 then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_NAME: name needs 1 to 200 characters';
  end if;
end;
$$;

-- For functions that read past policies what their caller may read: with the list that the policies have. The provider's staff has
-- neither a role nor scopes.
create or replace function tenancy.require_role_in(variadic p_roles text[])
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if tenancy.current_role_in(variadic p_roles) then
    return;
  elsif nullif(current_setting('app.current_key_id', true), '') is not null then
    raise exception using
      errcode = 'PT403',
      message = coalesce(
        'SCOPE_REQUIRED: this needs an API key with the scope ' || (select string_agg(r, ' or ') from unnest(p_roles) r where r like '%:%'),
        'SCOPE_REQUIRED: no API key may do this, whatever its scopes'
      ),
      hint = case
        when exists (select from unnest(p_roles) r where r like '%:%')
          then 'The scopes of a key stay as they are: an owner or admin of the organization makes another one.'
        else 'People do it, with a token of role member.'
      end;
  elsif tenancy.current_user_id() is not null then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: your role in the organization is not one that may read this',
      hint = 'GET /memberships says what it is. Ask an owner or admin of the organization.';
  end if;
end;
$$;

-- Called by functions that run as their caller, so current_user is the role of the token. They are EXECUTE for everybody with a
-- token, so that the refusal is a clear 403 that says which role is needed; what they call is for platform_admin alone.
create or replace function tenancy.require_staff(p_does text, p_hint text default null)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if current_user <> 'platform_admin' then
    raise exception using
      errcode = 'PT403',
      message = format('ROLE_REQUIRED: only platform_admin %s', p_does),
      hint = coalesce(p_hint, 'Ask the provider''s staff.');
  end if;
end;
$$;

-- The provider's own programs, and its staff.
create or replace function tenancy.require_backend(p_does text)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if current_user not in ('service', 'platform_admin') then
    raise exception using
      errcode = 'PT403',
      message = format('ROLE_REQUIRED: only the provider''s backend (service) and platform_admin %s', p_does),
      hint = 'GET /entitlements shows what is left.';
  end if;
end;
$$;

create or replace function tenancy.require_platform_admin()
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  perform tenancy.require_staff('closes billing periods', 'Owners and admins read usage_summary, invoices and billing_periods.');
  perform tenancy.require_organization();
end;
$$;

grant execute on function tenancy.require_organization() to goldleaves_kernel, platform_admin;
grant execute on function tenancy.require_name(text), tenancy.require_role_in(text[]) to goldleaves_kernel;
grant execute on function tenancy.require_staff(text, text), tenancy.require_backend(text), tenancy.require_platform_admin()
  to member, service, platform_admin;
