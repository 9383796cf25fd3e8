-- $Title.
${schema}set local role goldleaves_owner;

create table $table (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
$columns
  created_by uuid default tenancy.current_user_id(),
  created_at timestamptz not null default now(),
$keys
);
$indexes
reset role;
