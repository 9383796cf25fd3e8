-- The balance follows from invoices, credit notes and refunds; owners, admins and billing users of the organization read it.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- a row: (kind, amount_cents, credit_note_id, refund_id) values ('negative_invoice', 1, null, null)
alter table billing.balance_entries enable row level security;
alter table billing.balance_entries force row level security;

create policy balance_entries_read on billing.balance_entries for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy balance_entries_staff on billing.balance_entries for select to platform_admin using (true);
create policy balance_entries_kernel on billing.balance_entries to goldleaves_kernel using (true) with check (true);

grant select on billing.balance_entries to member, platform_admin;
grant select, insert on billing.balance_entries to goldleaves_kernel;
