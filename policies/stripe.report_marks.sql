-- How far Stripe has acknowledged an organization's usage: everybody who reads usage sees whether it is posted.
--
-- may select: owner, admin, member, viewer, billing, usage:read; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (meter_code, acknowledged_generation, acknowledged_xid) values ('api.request', 0, '0')
alter table stripe.report_marks enable row level security;
alter table stripe.report_marks force row level security;

create policy report_marks_read on stripe.report_marks for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read'));

create policy report_marks_staff on stripe.report_marks for select to platform_admin using (true);
create policy report_marks_kernel on stripe.report_marks to goldleaves_kernel using (true) with check (true);

grant select on stripe.report_marks to member, platform_admin;
grant select, insert, update (acknowledged_generation, acknowledged_xid, reported) on stripe.report_marks to goldleaves_kernel;
