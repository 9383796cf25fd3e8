-- How far Stripe has acknowledged an organization's usage: everybody who reads usage sees whether it is posted.
--
-- may select: owner, admin, member, viewer, billing, usage:read; platform_admin everywhere
alter table stripe.report_marks enable row level security;
alter table stripe.report_marks force row level security;

create policy report_marks_read on stripe.report_marks for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read'));

create policy report_marks_staff on stripe.report_marks for select to platform_admin using (true);
-- Without a grant it lets nobody in but who already holds the owner's rights, for a backfill: FORCE holds for them, too.
create policy report_marks_kernel on stripe.report_marks to goldleaves_kernel using (true) with check (true);

grant select on stripe.report_marks to member, platform_admin;
