-- Invoices as Stripe has them: owners, admins and billing users of the organization see their own.
--
-- may select: owner, admin, billing; platform_admin, goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
-- a row: (id, customer_id, is_live, latest_event_id, latest_event_at) values (ops.new_id(), 'cus_isolation', false, 'evt_isolation', now())
alter table stripe.invoices enable row level security;
alter table stripe.invoices force row level security;

create policy invoices_read on stripe.invoices for select to member
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'billing'));

create policy invoices_staff on stripe.invoices for select to platform_admin using (true);
create policy invoices_kernel on stripe.invoices to goldleaves_kernel using (true) with check (true);

grant select on stripe.invoices to member, platform_admin;
grant select, insert, update (subscription_id, number, status, currency, total_cents, amount_due_cents, amount_paid_cents, period_start, period_end, hosted_invoice_url,
  charge_id, payment_intent_id, facts, latest_event_id, latest_event_at)
  on stripe.invoices to goldleaves_kernel;
