-- Organizations and who belongs to them. These two show all of the caller's, not only the current one.
create view api.organizations with (security_invoker) as
select id, kind, name, slug, plan, billing_timezone, billing_anchor_day, currency, billing_start_at, created_at
from tenancy.organizations;

comment on view api.organizations is 'The organizations you are a member of. Owners and admins may rename theirs (the current one).';
comment on column api.organizations.id is 'What X-Organization-ID takes.';
comment on column api.organizations.kind is 'personal: made when somebody signed in first; or organization.';
comment on column api.organizations.name is '1 to 200 characters.';
comment on column api.organizations.plan is 'Code of the plan, such as starter.';
comment on column api.organizations.currency is 'ISO 4217, lowercase: what its invoices are in.';
comment on column api.organizations.created_at is 'When it was founded (UTC).';
comment on column api.organizations.slug is 'Unique short name; X-Organization-ID takes it as well as the id.';
comment on column api.organizations.billing_timezone is 'IANA timezone in which the organization''s billing periods begin and end.';
comment on column api.organizations.billing_anchor_day is 'Day of the month on which periods begin; 31 means the last day of a shorter month.';
comment on column api.organizations.billing_start_at is 'Since when the organization pays (UTC); null means that it always has.';

create view api.memberships with (security_invoker) as
select organization_id, user_id, role, created_at
from tenancy.memberships;

comment on view api.memberships is 'Who belongs to the current organization with which role, and your own memberships elsewhere. People come by invitation.';
comment on column api.memberships.organization_id is 'The organization.';
comment on column api.memberships.user_id is 'Id of the user, as sign_in returns it.';
comment on column api.memberships.created_at is 'Since when (UTC).';
comment on column api.memberships.role is 'owner, admin, member, viewer or billing.';

grant select, delete on api.organizations, api.memberships to member;
grant update (name) on api.organizations to member;
grant update (role) on api.memberships to member;
grant select on api.organizations, api.memberships to platform_admin;
