-- Signing in, and founding an organization.
create function api.sign_in()
returns jsonb
language sql
volatile
as $$ select tenancy.sign_in() $$;

comment on function api.sign_in() is $$Sign in: say who you are, and get your organizations

Makes you known the first time, with a personal organization as your default. Returns an object: user_id, email (null when
the token has none), default_organization_id, and organizations, a list of {id, slug, name, role}. For people (member).

Errors: ROLE_REQUIRED (403), INVALID_TOKEN (401).$$;

create function api.create_organization(name text, slug text, timezone text default 'UTC')
returns api.organizations
language sql
volatile
as $$
  select o.id, o.kind, o.name, o.slug, o.plan, o.billing_timezone, o.billing_anchor_day, o.currency, o.billing_start_at, o.created_at
  from tenancy.create_organization(name, slug, timezone) o
$$;

comment on function api.create_organization(text, text, text) is $$Found an organization

You become its owner. name has 1 to 200 characters. slug has 1 to 63 of a-z, 0-9 and inner hyphens, and no other organization
has it. timezone is an IANA name: billing periods begin and end at its midnight. Returns the organization.

Errors: INVALID_NAME, INVALID_SLUG, INVALID_TIMEZONE (400), SLUG_TAKEN (409), ROLE_REQUIRED (403).$$;

create function api.health()
returns jsonb
language sql
stable
as $$ select '{"status": "ok"}'::jsonb $$;

comment on function api.health() is $$Whether PostgREST and the database answer

Returns {"status": "ok"}. Needs no token. GET /health of the gateway says more.$$;

grant execute on function api.sign_in(), api.create_organization(text, text, text) to member, service, platform_admin;
grant execute on function api.health() to anon, member, service, platform_admin;
