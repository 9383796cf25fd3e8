-- Signing in, founding an organization, and who belongs to it.
create function api.sign_in()
returns jsonb
language sql
volatile
set search_path = ''
as $$ select tenancy.sign_in() $$;

comment on function api.sign_in() is $$Sign in: say who you are, and get your organizations

Makes you known the first time, with a personal organization as your default. Returns an object: user_id, email (null when
the token has none), default_organization_id, and organizations, a list of {id, slug, name, role}. For people (member).

Errors: ROLE_REQUIRED (403), INVALID_TOKEN (401).$$;

create function api.create_organization(name text, slug text, timezone text default 'UTC')
returns api.organizations
language sql
volatile
set search_path = ''
as $$
  select o.id, o.kind, o.name, o.slug, o.plan, o.billing_timezone, o.billing_anchor_day, o.currency, o.billing_start_at, o.created_at
  from tenancy.create_organization(name, slug, timezone) o
$$;

comment on function api.create_organization(text, text, text) is $$Found an organization

You become its owner. name has 1 to 200 characters. slug has 1 to 63 of a-z, 0-9 and inner hyphens, and no other organization
has it. timezone is an IANA name: billing periods begin and end at its midnight. Returns the organization.

Errors: INVALID_NAME, INVALID_SLUG, INVALID_TIMEZONE (400), SLUG_TAKEN (409), ROLE_REQUIRED (403).$$;

create view api.pending_invitations with (security_invoker) as
select id, organization_id, email, role, invited_by, created_at, sent_at, expires_at
from tenancy.invitations
where accepted_at is null
  and revoked_at is null;

comment on view api.pending_invitations is 'Invitations of the current organization that were neither accepted nor revoked. For owners and admins.';
comment on column api.pending_invitations.id is 'What resend_invitation and revoke_invitation take.';
comment on column api.pending_invitations.organization_id is 'The organization that it leads into.';
comment on column api.pending_invitations.email is 'Whom it is for, in lower case.';
comment on column api.pending_invitations.role is 'The role that accepting it gives: owner, admin, member, viewer or billing.';
comment on column api.pending_invitations.invited_by is 'Id of the user who made it. When they lose the role to do so, it is revoked.';
comment on column api.pending_invitations.created_at is 'When it was made (UTC).';
comment on column api.pending_invitations.sent_at is 'When its present code was made (UTC).';
comment on column api.pending_invitations.expires_at is 'Until when the code is good (UTC). An invitation that has expired stays here until it is sent again, revoked or replaced.';

grant select on api.pending_invitations to member, platform_admin;

create function api.create_invitation(
  inout email text,
  inout role text,
  out id uuid,
  out organization_id uuid,
  out invited_by uuid,
  out created_at timestamptz,
  out sent_at timestamptz,
  out expires_at timestamptz,
  out code text
)
language sql
volatile
set search_path = ''
as $$
  select
    (i.p_invitation).email, (i.p_invitation).role, (i.p_invitation).id, (i.p_invitation).organization_id, (i.p_invitation).invited_by,
    (i.p_invitation).created_at, (i.p_invitation).sent_at, (i.p_invitation).expires_at, i.p_code
  from tenancy.create_invitation(create_invitation.email, create_invitation.role) i
$$;

comment on function api.create_invitation(text, text) is $$Invite somebody into the current organization

For owners and admins; admins invite no owners. Send the person the code, which is shown this once: they sign in with that e-mail
address and call accept_invitation. It is good once, and for seven days. A person has one pending invitation at most; one that has
expired is replaced.

- email: Whom it is for, trimmed and in lower case. Never null.
- role: The role that accepting it gives: owner, admin, member, viewer or billing. Never null.
- id: What resend_invitation and revoke_invitation take. Never null.
- organization_id: The organization that it leads into. Never null.
- invited_by: Your user id. Never null.
- created_at: When it was made (UTC). Never null.
- sent_at: When the code was made (UTC). Never null.
- expires_at: Until when the code is good (UTC). Never null.
- code: 32 hexadecimal digits. Only its hash is stored. Never null.

Errors: INVALID_EMAIL, INVALID_ROLE, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), ALREADY_A_MEMBER,
INVITATION_PENDING, PERSONAL_OWNER (409).$$;

create function api.resend_invitation(
  inout id uuid,
  out organization_id uuid,
  out email text,
  out role text,
  out invited_by uuid,
  out created_at timestamptz,
  out sent_at timestamptz,
  out expires_at timestamptz,
  out code text
)
language sql
volatile
set search_path = ''
as $$
  select
    (i.p_invitation).id, (i.p_invitation).organization_id, (i.p_invitation).email, (i.p_invitation).role, (i.p_invitation).invited_by,
    (i.p_invitation).created_at, (i.p_invitation).sent_at, (i.p_invitation).expires_at, i.p_code
  from tenancy.resend_invitation(resend_invitation.id) i
$$;

comment on function api.resend_invitation(uuid) is $$Give a pending invitation a new code, for seven days from now

The code from before is dead. For those who may invite for its role, also when it has expired.

- id: The invitation. Never null.
- organization_id: The organization that it leads into. Never null.
- email: Whom it is for. Never null.
- role: The role that accepting it gives: owner, admin, member, viewer or billing. Never null.
- invited_by: Id of the user who made it. Never null.
- created_at: When it was made (UTC). Never null.
- sent_at: When the code was made (UTC). Never null.
- expires_at: Until when the code is good (UTC). Never null.
- code: 32 hexadecimal digits. Only its hash is stored. Never null.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), INVITATION_NOT_FOUND (404), INVITATION_USED (409),
INVITATION_REVOKED (410).$$;

create function api.revoke_invitation(id uuid)
returns api.pending_invitations
language sql
volatile
set search_path = ''
as $$
  select i.id, i.organization_id, i.email, i.role, i.invited_by, i.created_at, i.sent_at, i.expires_at
  from tenancy.revoke_invitation(revoke_invitation.id) i
$$;

comment on function api.revoke_invitation(uuid) is $$Take a pending invitation back

For those who may invite for its role. Returns the invitation that was pending.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), INVITATION_NOT_FOUND (404), INVITATION_USED (409),
INVITATION_REVOKED (410).$$;

create function api.accept_invitation(code text)
returns api.organizations
language sql
volatile
set search_path = ''
as $$
  select o.id, o.kind, o.name, o.slug, o.plan, o.billing_timezone, o.billing_anchor_day, o.currency, o.billing_start_at, o.created_at
  from tenancy.accept_invitation(code) o
$$;

comment on function api.accept_invitation(text) is $$Accept an invitation, and become a member of its organization

The claim email of your token must be the address that was invited, and email_verified must not be false. X-Organization-ID and
org_id are not looked at. It makes you known when you are new. Returns the organization; send its id as X-Organization-ID to act in it. It becomes your default
one only when you had none.

Errors: ROLE_REQUIRED, INVITATION_EMAIL_MISMATCH, EMAIL_NOT_VERIFIED (403), INVITATION_NOT_FOUND (404), INVITATION_USED,
ALREADY_A_MEMBER (409), INVITATION_REVOKED, INVITATION_EXPIRED (410), INVALID_TOKEN (401).$$;

create function api.change_member_role(user_id uuid, role text)
returns api.memberships
language sql
volatile
set search_path = ''
as $$
  select m.organization_id, m.user_id, m.role, m.created_at
  from tenancy.change_member_role(change_member_role.user_id, change_member_role.role) m
$$;

comment on function api.change_member_role(uuid, text) is $$Give a member another role

For owners and admins of the current organization; admins make and change no owners. You may take a role from yourself. Pending
invitations that the person may no longer make are revoked. Returns the membership. Unlike PATCH on memberships, which finds no
row then, it says why it refuses.

Errors: INVALID_ROLE, ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), MEMBER_NOT_FOUND (404), LAST_OWNER,
PERSONAL_OWNER (409).$$;

create function api.remove_member(user_id uuid)
returns api.memberships
language sql
volatile
set search_path = ''
as $$ select m.organization_id, m.user_id, m.role, m.created_at from tenancy.remove_member(remove_member.user_id) m $$;

comment on function api.remove_member(uuid) is $$Remove somebody from the current organization

For owners. Their next request is 403, also with a token that is still good, and the pending invitations that they made are revoked.
What they made stays. Returns the membership that was.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), MEMBER_NOT_FOUND (404), LAST_OWNER, PERSONAL_OWNER (409).$$;

create function api.leave_organization()
returns api.memberships
language sql
volatile
set search_path = ''
as $$ select m.organization_id, m.user_id, m.role, m.created_at from tenancy.leave_organization() m $$;

comment on function api.leave_organization() is $$Leave the current organization

For every member; the last owner hands it over or deletes it first. Returns the membership that was.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), LAST_OWNER, PERSONAL_OWNER (409).$$;

create function api.transfer_ownership(user_id uuid)
returns api.memberships
language sql
volatile
set search_path = ''
as $$ select m.organization_id, m.user_id, m.role, m.created_at from tenancy.transfer_ownership(transfer_ownership.user_id) m $$;

comment on function api.transfer_ownership(uuid) is $$Hand the current organization over to another member

For owners. The other becomes owner and you become admin. Returns the other's membership. A personal organization is handed over to
nobody.

Errors: ORGANIZATION_REQUIRED (400), ROLE_REQUIRED, NOT_A_MEMBER (403), MEMBER_NOT_FOUND (404), PERSONAL_OWNER (409).$$;

create function api.health()
returns jsonb
language sql
stable
set search_path = ''
as $$ select '{"status": "ok"}'::jsonb $$;

comment on function api.health() is $$Whether PostgREST and the database answer

Returns {"status": "ok"}. Needs no token. GET /health of the gateway says more.$$;

grant execute on function api.sign_in(), api.create_organization(text, text, text), api.create_invitation(text, text),
  api.resend_invitation(uuid), api.revoke_invitation(uuid), api.accept_invitation(text), api.change_member_role(uuid, text),
  api.remove_member(uuid), api.leave_organization(), api.transfer_ownership(uuid) to member, service, platform_admin;
grant execute on function api.health() to anon, member, service, platform_admin;
