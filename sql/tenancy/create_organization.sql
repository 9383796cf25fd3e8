-- A person founds an organization and becomes its owner.
create or replace function tenancy.create_organization(p_name text, p_slug text, p_timezone text)
returns tenancy.organizations
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_user_id uuid := tenancy.current_user_id();
  v_organization tenancy.organizations;
begin
  if v_user_id is null then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only people create organizations, with a token of role member';
  end if;
  perform tenancy.require_name(p_name);
  perform tenancy.require_slug(p_slug);
  if not exists (select from pg_catalog.pg_timezone_names where name = p_timezone) then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_TIMEZONE: %s is not a timezone', left(p_timezone, 80)),
      hint = 'Use an IANA name, such as America/Los_Angeles.';
  end if;

  insert into tenancy.organizations (name, slug, billing_timezone, owner_user_id)
  values (btrim(p_name), p_slug, p_timezone, v_user_id)
  on conflict (slug) where slug is not null do nothing
  returning * into v_organization;
  if v_organization.id is null then
    perform tenancy.raise_slug_taken(p_slug);
  end if;

  insert into tenancy.memberships (organization_id, user_id, role) values (v_organization.id, v_user_id, 'owner');
  return v_organization;
end;
$$;

alter function tenancy.create_organization(text, text, text) owner to goldleaves_kernel;
grant execute on function tenancy.create_organization(text, text, text) to member, service, platform_admin;
