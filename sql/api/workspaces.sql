-- Workspaces are rooms inside an organization. organization_id fills itself from the tenant context, as in the tenant's own tables.
create view api.workspaces with (security_invoker) as
select id, organization_id, name, created_by, created_at
from tenancy.workspaces;

-- PostgREST takes the defaults of views, not of what is behind them, for what is missing in a row of a bulk insert (missing=default).
alter view api.workspaces alter column organization_id set default tenancy.current_org(), alter column id set default ops.new_id();

comment on view api.workspaces is 'The workspaces of the organization. Owners and admins make and change them, owners delete them. A personal organization has one at most: a second one is refused with WORKSPACE_LIMIT (403).';
comment on column api.workspaces.id is 'Made by us unless sent; unique within the organization, and fixed.';
comment on column api.workspaces.organization_id is 'Whose row it is; fills itself with the current organization.';
comment on column api.workspaces.name is '1 to 200 characters.';
comment on column api.workspaces.created_by is 'Id of the user who made it. Set by us: what is sent is ignored.';
comment on column api.workspaces.created_at is 'When it was made (UTC). Set by us: what is sent is ignored.';

grant select, delete on api.workspaces to member;
grant insert (organization_id, id, name, created_by, created_at),
  update (organization_id, id, name, created_by, created_at) on api.workspaces to member;
grant select on api.workspaces to platform_admin;
