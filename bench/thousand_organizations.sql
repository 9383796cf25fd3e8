-- A million cases of a thousand organizations, each with one person, and clients to embed. Rows of all organizations lie side by side,
-- as they do where all of them write every day. Without triggers: nothing here is about metering or the audit log.
begin;
set local session_replication_role = replica;

insert into tenancy.users (subject)
select 'reader-' || n from generate_series(1, 1000) n;

insert into tenancy.organizations (kind, name, slug, owner_user_id)
select 'organization', subject, subject, id from tenancy.users where subject like 'reader-%';

insert into tenancy.memberships (organization_id, user_id, role)
select id, owner_user_id, 'member' from tenancy.organizations where slug like 'reader-%';

update tenancy.users u
set default_organization_id = o.id
from tenancy.organizations o
where o.owner_user_id = u.id and o.slug = u.subject;

insert into app.clients (organization_id, name)
select o.id, 'Client ' || n
from generate_series(1, 100) n, tenancy.organizations o
where o.slug like 'reader-%'
order by n;

insert into app.cases (organization_id, client_id, title)
select c.organization_id, c.id, 'Case ' || n || ' of ' || c.name
from generate_series(1, 10) n, app.clients c
order by n, c.id;

commit;

vacuum (analyze) tenancy.users, tenancy.organizations, tenancy.memberships, app.clients, app.cases;
