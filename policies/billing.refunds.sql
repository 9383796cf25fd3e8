-- Refunds are recorded by the provider's side; owners, admins and billing users of the organization read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- a row: (credit_note_id, amount_cents) values (null, 1)
alter table billing.refunds enable row level security;
alter table billing.refunds force row level security;

create policy refunds_read on billing.refunds for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy refunds_staff on billing.refunds for select to platform_admin using (true);
create policy refunds_kernel on billing.refunds to goldleaves_kernel using (true) with check (true);

grant select on billing.refunds to member, platform_admin;
grant select, insert on billing.refunds to goldleaves_kernel;
