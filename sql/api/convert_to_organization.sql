create function api.convert_to_organization(name text, slug text)
returns api.organizations
language sql
volatile
set search_path = ''
as $$
  select o.id, o.kind, o.name, o.slug, o.plan, o.billing_timezone, o.billing_anchor_day, o.currency, o.billing_start_at, o.created_at
  from tenancy.convert_to_organization(name, slug) o
$$;

comment on function api.convert_to_organization(text, text) is $$Make your personal organization an organization

The current one, of which you are the owner. It keeps its id and all that is in it: workspaces, people with the roles they have, API
keys, usage. name and slug are new, and the old slug is free for others. From billing_start_at on the organization pays, you before.
There is no way back. All of it happens, or nothing: then message and details name the step that failed. Returns the organization.

Errors: INVALID_NAME, INVALID_SLUG (400), ROLE_REQUIRED (403), ALREADY_AN_ORGANIZATION, SLUG_TAKEN (409), CONVERSION_FAILED (500), PERIOD_BUSY (503).$$;

grant execute on function api.convert_to_organization(text, text) to member, service, platform_admin;
