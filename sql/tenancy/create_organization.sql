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
  if coalesce(length(btrim(p_name)), 0) not between 1 and 200 then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_NAME: name needs 1 to 200 characters';
  end if;
  if p_slug is null or p_slug !~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$' or tenancy.is_uuid(p_slug) then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_SLUG: slug needs 1 to 63 lowercase letters, digits and inner hyphens, and may not look like a UUID';
  end if;
  if not exists (select from pg_catalog.pg_timezone_names where name = p_timezone) then
    raise exception using
      errcode = 'PT400',
      message = format('INVALID_TIMEZONE: %s is not a timezone', left(p_timezone, 80)),
      hint = 'Use an IANA name, such as America/Los_Angeles.';
  end if;

  insert into tenancy.organizations (name, slug, billing_timezone, owner_user_id)
  values (btrim(p_name), p_slug, p_timezone, v_user_id)
  on conflict (slug) do nothing
  returning * into v_organization;
  if v_organization.id is null then
    raise exception using
      errcode = 'PT409',
      message = format('SLUG_TAKEN: another organization is called %s', p_slug),
      hint = 'Choose another slug.';
  end if;

  insert into tenancy.memberships (organization_id, user_id, role) values (v_organization.id, v_user_id, 'owner');
  return v_organization;
end;
$$;

alter function tenancy.create_organization(text, text, text) owner to goldleaves_kernel;
grant execute on function tenancy.create_organization(text, text, text) to member, service, platform_admin;
