-- The current organization for callers who have one of these roles or scopes, null for others. Policies compare organization_id with
-- it and ask nothing else: what has no column in it is then part of the index condition, found once a scan. As a condition of its own
-- beside the organization's, as tenancy.current_role_in() is, it is found again for each row: row security lets the planner move no
-- condition out of a table's scan.
set local role goldleaves_owner;

-- No `set search_path` here: it would stop the planner from inlining it.
create function tenancy.current_org_for(variadic p_roles text[])
returns uuid
language sql
stable
parallel safe
as $$
  select case
    when pg_catalog.string_to_array(pg_catalog.current_setting('app.current_org_role', true), ',') operator(pg_catalog.&&) p_roles
    then nullif(pg_catalog.current_setting('app.current_org', true), '')::pg_catalog.uuid
  end
$$;

grant execute on function tenancy.current_org_for(text[]) to member;

reset role;
