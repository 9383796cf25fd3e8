-- Slugs of organizations, for whoever founds one or converts theirs.

create or replace function tenancy.require_slug(p_slug text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  if p_slug is null or p_slug !~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$' or tenancy.is_uuid(p_slug) then
    raise exception using
      errcode = 'PT400',
      message = 'INVALID_SLUG: slug needs 1 to 63 lowercase letters, digits and inner hyphens, and may not look like a UUID';
  end if;
end;
$$;

create or replace function tenancy.raise_slug_taken(p_slug text)
returns void
language plpgsql
immutable
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('SLUG_TAKEN: another organization is called %s', p_slug),
    hint = 'Choose another slug.';
end;
$$;

grant execute on function tenancy.require_slug(text), tenancy.raise_slug_taken(text) to goldleaves_kernel;
