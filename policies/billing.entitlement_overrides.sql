-- What staff granted an organization beside its plan. Owners, admins and billing users read it; everybody in it sees the view entitlements.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- may delete: goldleaves_kernel everywhere
-- a row: (feature, kind, created_by) values ('isolation', 'boolean', 'isolation')
alter table billing.entitlement_overrides enable row level security;
alter table billing.entitlement_overrides force row level security;

create policy entitlement_overrides_read on billing.entitlement_overrides for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy entitlement_overrides_staff on billing.entitlement_overrides for select to platform_admin using (true);
create policy entitlement_overrides_kernel on billing.entitlement_overrides to goldleaves_kernel using (true) with check (true);

grant select on billing.entitlement_overrides to member, platform_admin;
grant select, insert, delete,
  update (is_granted, kind, limit_value, enforcement, meter_code, expires_at, reason, created_at, created_by) on billing.entitlement_overrides to goldleaves_kernel;
