-- Signing in, and founding an organization.
create function api.sign_in()
returns jsonb
language sql
volatile
as $$ select tenancy.sign_in() $$;

comment on function api.sign_in() is
  'Makes you known the first time (with a personal organization as your default) and returns {user_id, email, default_organization_id, organizations: [{id, slug, name, role}]}.';

create function api.create_organization(name text, slug text, timezone text default 'UTC')
returns api.organizations
language sql
volatile
as $$
  select o.id, o.kind, o.name, o.slug, o.plan, o.billing_timezone, o.billing_anchor_day, o.currency, o.billing_start_at, o.created_at
  from tenancy.create_organization(name, slug, timezone) o
$$;

comment on function api.create_organization(text, text, text) is
  'Founds an organization with you as its owner and returns it. timezone is an IANA name. Errors: INVALID_NAME, INVALID_SLUG, INVALID_TIMEZONE (400), SLUG_TAKEN (409), ROLE_REQUIRED (403).';

create function api.health()
returns jsonb
language sql
stable
as $$ select '{"status": "ok"}'::jsonb $$;

comment on function api.health() is 'Answers {"status": "ok"} when PostgREST and the database do.';

grant execute on function api.sign_in(), api.create_organization(text, text, text) to member, service, platform_admin;
grant execute on function api.health() to anon, member, service, platform_admin;
