-- Users are people, known by the subject of their token. No tenant role reads or writes them directly.
alter table tenancy.users enable row level security;
alter table tenancy.users force row level security;

create policy users_kernel on tenancy.users to goldleaves_kernel using (true) with check (true);

grant select, insert, update (email, default_organization_id) on tenancy.users to goldleaves_kernel;
