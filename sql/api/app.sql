-- The tenant's own tables. organization_id fills itself from the tenant context; a client may name it, RLS lets pass only its own.
create view api.clients with (security_invoker) as
select id, organization_id, name, email, created_by, created_at
from app.clients;

create view api.cases with (security_invoker) as
select id, organization_id, client_id, title, status, created_by, created_at
from app.cases;

create view api.documents with (security_invoker) as
select id, organization_id, case_id, title, size_bytes, status, storage_key, created_by, created_at
from app.documents;

-- PostgREST takes the defaults of views, not of what is behind them, for what is missing in a row of a bulk insert (missing=default).
alter view api.clients alter column organization_id set default tenancy.current_org(), alter column id set default ops.new_id();
alter view api.cases alter column organization_id set default tenancy.current_org(), alter column id set default ops.new_id(),
  alter column status set default 'open';
alter view api.documents alter column organization_id set default tenancy.current_org(), alter column id set default ops.new_id(),
  alter column size_bytes set default 0, alter column status set default 'uploaded';

comment on view api.clients is 'The people and firms that the organization works for.';
comment on view api.cases is 'Matters of a client.';
comment on view api.documents is 'Documents of a case. Inserting one records doc.upload, its status becoming processed records doc.processed, and what it stores storage.bytes.';
comment on column api.clients.id is 'Made by us unless sent; unique within the organization, and fixed.';
comment on column api.clients.organization_id is 'Whose row it is; fills itself with the current organization.';
comment on column api.clients.name is '1 to 200 characters.';
comment on column api.clients.email is 'E-mail address at which to reach them; any text.';
comment on column api.clients.created_by is 'Id of the user who made it. Set by us: what is sent is ignored.';
comment on column api.clients.created_at is 'When it was made (UTC). Set by us: what is sent is ignored.';
comment on column api.cases.id is 'Made by us unless sent; unique within the organization, and fixed.';
comment on column api.cases.organization_id is 'Whose row it is; fills itself with the current organization.';
comment on column api.cases.client_id is 'The client; null when none or deleted.';
comment on column api.cases.title is '1 to 200 characters.';
comment on column api.cases.status is 'open or closed.';
comment on column api.cases.created_by is 'Id of the user who made it. Set by us: what is sent is ignored.';
comment on column api.cases.created_at is 'When it was made (UTC). Set by us: what is sent is ignored.';
comment on column api.documents.id is 'Made by us unless sent; unique within the organization, and fixed.';
comment on column api.documents.organization_id is 'Whose row it is; fills itself with the current organization.';
comment on column api.documents.case_id is 'The case; null when none or deleted.';
comment on column api.documents.title is '1 to 200 characters.';
comment on column api.documents.created_by is 'Id of the user who made it. Set by us: what is sent is ignored.';
comment on column api.documents.created_at is 'When it was made (UTC). Set by us: what is sent is ignored.';
comment on column api.documents.size_bytes is 'Size of the stored file in bytes.';
comment on column api.documents.status is 'uploaded, processing, processed or failed.';
comment on column api.documents.storage_key is 'Where the file lies in the object store.';

grant select, delete on api.clients, api.cases, api.documents to member;
grant insert (organization_id, id, name, email, created_by, created_at),
  update (organization_id, id, name, email, created_by, created_at) on api.clients to member;
grant insert (organization_id, id, client_id, title, status, created_by, created_at),
  update (organization_id, id, client_id, title, status, created_by, created_at) on api.cases to member;
grant insert (organization_id, id, case_id, title, size_bytes, status, storage_key, created_by, created_at),
  update (organization_id, id, case_id, title, size_bytes, status, storage_key, created_by, created_at) on api.documents to member;
grant select on api.clients, api.cases, api.documents to platform_admin;
