-- Entries of the audit log on their way into it. Only the functions that add to it touch them.
alter table audit.pending enable row level security;
alter table audit.pending force row level security;

create policy pending_kernel on audit.pending to goldleaves_kernel using (true) with check (true);

grant select, insert, delete on audit.pending to goldleaves_kernel;
