-- Credit notes are issued by the provider's staff; owners, admins and billing users of the organization read them.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- a row: (number, payer_user_id, currency, subtotal_cents, tax_cents, total_cents, to_balance_cents) values (null, null, 'usd', 1, 0, 1, 0)
alter table billing.credit_notes enable row level security;
alter table billing.credit_notes force row level security;

create policy credit_notes_read on billing.credit_notes for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy credit_notes_staff on billing.credit_notes for select to platform_admin using (true);
create policy credit_notes_kernel on billing.credit_notes to goldleaves_kernel using (true) with check (true);

grant select on billing.credit_notes to member, platform_admin;
grant select, insert on billing.credit_notes to goldleaves_kernel;
