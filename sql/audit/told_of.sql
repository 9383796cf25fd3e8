-- What an entry of the audit log still tells of people, as far as the caller may see it: null once it is erased.
create or replace function audit.told_of(p_organization_id uuid, p_position bigint, variadic p_parts text[])
returns jsonb
language sql
stable
set search_path = ''
as $$
  select p.data
  from audit.personal p
  where p.organization_id = p_organization_id
    and p.position = p_position
    and p.part = any (p_parts)
  limit 1
$$;

grant execute on function audit.told_of(uuid, bigint, text[]) to member, platform_admin;
