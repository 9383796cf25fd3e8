-- The ends of the chains of the audit log. Only the functions that add to it and verify it touch them.
--
-- may select: goldleaves_kernel everywhere
-- may insert: goldleaves_kernel everywhere
-- may update: goldleaves_kernel everywhere
alter table audit.heads enable row level security;
alter table audit.heads force row level security;

create policy heads_kernel on audit.heads to goldleaves_kernel using (true) with check (true);

grant select, insert, update (position, hash) on audit.heads to goldleaves_kernel;
