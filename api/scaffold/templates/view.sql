-- $Title.
create view api.$name with (security_invoker) as
select id, organization_id, $shown, created_by, created_at
from $table;

-- PostgREST takes the defaults of views, not of what is behind them, for what is missing in a row of a bulk insert.
alter view api.$name
$defaults;

comment on view api.$name is '$Title.';
comment on column api.$name.id is 'Made by us unless sent; unique within the organization, and fixed.';
comment on column api.$name.organization_id is 'Whose row it is; fills itself with the current organization.';
$comments
comment on column api.$name.created_by is 'Id of the user who made it. Set by us: what is sent is ignored.';
comment on column api.$name.created_at is 'When it was made (UTC). Set by us: what is sent is ignored.';

grant select, delete on api.$name to member;
grant insert ($written),
  update ($written) on api.$name to member;
grant select on api.$name to platform_admin;
