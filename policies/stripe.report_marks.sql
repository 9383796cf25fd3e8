-- How far Stripe has acknowledged an organization's usage: everybody who reads usage sees whether it is posted.
alter table stripe.report_marks enable row level security;
alter table stripe.report_marks force row level security;

create policy report_marks_read on stripe.report_marks for select to member
  using (
    organization_id = tenancy.current_org()
    and tenancy.current_role_in('owner', 'admin', 'member', 'viewer', 'billing', 'usage:read')
  );

create policy report_marks_staff on stripe.report_marks for select to platform_admin using (true);

grant select on stripe.report_marks to member, platform_admin;
