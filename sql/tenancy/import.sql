-- People who are somewhere already: users, organizations and memberships out of files, as `goldleaves import` reads them. Each row is
-- judged by itself, so that all that is wrong with a file is told at once; the caller writes nothing when anything is. What is there
-- already stays as it is. No role of a request may call these.

-- p_line is where the row stands in its file. outcome: created, unchanged, conflict (it is there, and says something else) or bad.
create or replace function tenancy.import_users(p_rows jsonb)
returns table (line integer, outcome text, problem_column text, problem text)
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_row record;
  v_email text;
begin
  for v_row in select r.* from jsonb_to_recordset(p_rows) as r (line integer, subject text, email text) order by r.line
  loop
    line := v_row.line;
    problem_column := case
      when coalesce(length(v_row.subject), 0) not between 1 and 255 then 'subject'
      when v_row.email !~ '^[^@[:space:]]+@[^@[:space:]]+$' or length(v_row.email) > 320 then 'email'
    end;
    if problem_column is not null then
      outcome := 'bad';
      problem := case problem_column when 'subject' then 'needs 1 to 255 characters' else 'is no e-mail address' end;
      return next;
      continue;
    end if;

    problem := null;
    insert into tenancy.users (subject, email) values (v_row.subject, v_row.email) on conflict (subject) do nothing;
    if found then
      outcome := 'created';
    else
      select u.email into v_email from tenancy.users u where u.subject = v_row.subject;
      outcome := case when v_row.email is null or lower(v_row.email) = lower(v_email) then 'unchanged' else 'conflict' end;
      if outcome = 'conflict' then
        problem_column := 'email';
        problem := format('the user has %s', coalesce(v_email, 'none'));
      end if;
    end if;
    return next;
  end loop;
end;
$$;

-- Why a row is no organization; null when it can be one.
create or replace function tenancy.import_organization_problem(
  p_id text, p_name text, p_slug text, p_kind text, p_timezone_is_known boolean, p_anchor_day text, p_currency text, p_owner text,
  out problem_column text, out problem text
)
language plpgsql
stable
set search_path = ''
as $$
begin
  problem_column := 'name';
  perform tenancy.require_name(p_name);
  problem_column := 'slug';
  perform tenancy.require_slug(p_slug);
  select c.name, c.text
  into problem_column, problem
  from (values
    (1, 'id', 'needs a UUID', p_id is not null and not tenancy.is_uuid(p_id)),
    (2, 'kind', 'needs personal or organization', p_kind not in ('personal', 'organization')),
    (3, 'billing_timezone', 'is no timezone; write an IANA name, such as America/Los_Angeles', not p_timezone_is_known),
    (4, 'billing_anchor_day', 'needs a day from 1 to 31', p_anchor_day !~ '^([1-9]|[12][0-9]|3[01])$'),
    (5, 'currency', 'is no currency; write an ISO 4217 code in lower case, such as usd',
      p_currency is not null and not exists (select from billing.currencies c where c.code = p_currency)),
    (6, 'owner', 'is no user; add them to the file of users', not exists (select from tenancy.users u where u.subject = p_owner))
  ) as c (position, name, text, is_so)
  where c.is_so
  order by c.position
  limit 1;
exception when sqlstate 'PT400' then
  problem := split_part(sqlerrm, ': ', 2);
end;
$$;

create or replace function tenancy.import_organizations(p_rows jsonb)
returns table (line integer, outcome text, problem_column text, problem text)
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_row record;
  v_owner_id uuid;
  v_there tenancy.organizations;
  v_timezones text[] := array(select t.name from pg_timezone_names t);  -- read from files, each time
begin
  for v_row in
    select r.*
    from jsonb_to_recordset(p_rows) as r (
      line integer, id text, name text, slug text, kind text, billing_timezone text, billing_anchor_day text, currency text, owner text
    )
    order by r.line
  loop
    line := v_row.line;
    select p.problem_column, p.problem into problem_column, problem
    from tenancy.import_organization_problem(
      v_row.id, v_row.name, v_row.slug, v_row.kind, coalesce(v_row.billing_timezone = any (v_timezones), true),
      v_row.billing_anchor_day, v_row.currency, v_row.owner
    ) as p;
    if problem is not null then
      outcome := 'bad';
      return next;
      continue;
    end if;

    select u.id into strict v_owner_id from tenancy.users u where u.subject = v_row.owner;
    insert into tenancy.organizations (
      id, kind, name, slug, billing_timezone, billing_anchor_day, currency, owner_user_id, billing_user_id
    )
    values (
      coalesce(v_row.id::uuid, ops.new_id()), coalesce(v_row.kind, 'organization'), btrim(v_row.name), v_row.slug,
      coalesce(v_row.billing_timezone, 'UTC'), coalesce(v_row.billing_anchor_day::smallint, 1::smallint),
      coalesce(v_row.currency, 'usd'), v_owner_id, case when v_row.kind = 'personal' then v_owner_id end
    )
    on conflict do nothing
    returning * into v_there;
    if v_there.id is not null then
      insert into tenancy.memberships (organization_id, user_id, role) values (v_there.id, v_owner_id, 'owner');
      update tenancy.users u
      set default_organization_id = v_there.id
      where u.id = v_owner_id and u.default_organization_id is null;
      outcome := 'created';
      return next;
      continue;
    end if;

    -- Memberships that follow name it by its slug: one that merely has the same slug would let strangers in.
    select o.* into v_there
    from tenancy.organizations o
    where o.slug = v_row.slug or o.id = v_row.id::uuid
    order by o.id = v_row.id::uuid desc nulls last
    limit 1;
    problem_column := case
      when v_row.id is not null and v_there.id <> v_row.id::uuid then 'slug'
      when v_row.id is not null and v_there.slug <> v_row.slug then 'id'
      when v_row.id is null and not exists (
        select from tenancy.memberships m where m.organization_id = v_there.id and m.user_id = v_owner_id
      ) then 'slug'
    end;
    if problem_column is not null then
      outcome := 'bad';
      problem := format('belongs to another organization (%s, %s)', v_there.slug, v_there.id);
      return next;
      continue;
    end if;
    select c.name, format('the organization has %s', c.has)
    into problem_column, problem
    from (values
      (1, 'name', btrim(v_row.name), v_there.name),
      (2, 'kind', v_row.kind, v_there.kind),
      (3, 'billing_timezone', v_row.billing_timezone, v_there.billing_timezone),
      (4, 'billing_anchor_day', v_row.billing_anchor_day, v_there.billing_anchor_day::text),
      (5, 'currency', v_row.currency, v_there.currency),
      (6, 'owner', v_owner_id::text, v_there.owner_user_id::text)
    ) as c (position, name, wants, has)
    where c.wants <> c.has
    order by c.position
    limit 1;
    outcome := case when problem_column is null then 'unchanged' else 'conflict' end;
    return next;
  end loop;
end;
$$;

create or replace function tenancy.import_memberships(p_rows jsonb)
returns table (line integer, outcome text, problem_column text, problem text)
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_row record;
  v_organization tenancy.organizations;
  v_user_id uuid;
  v_role text;
begin
  for v_row in
    select r.*
    from jsonb_to_recordset(p_rows) as r (line integer, organization text, subject text, role text)
    order by r.line
  loop
    line := v_row.line;
    select o.* into v_organization from tenancy.organizations o where o.id = tenancy.find_organization(v_row.organization);
    v_user_id := (select u.id from tenancy.users u where u.subject = v_row.subject);
    select c.name, c.text
    into problem_column, problem
    from (values
      (1, 'organization', 'is no organization; write its slug or id', v_organization.id is null),
      (2, 'subject', 'is no user; add them to the file of users', v_user_id is null),
      (3, 'role', format('needs one of %s', array_to_string(tenancy.roles(), ', ')), coalesce(v_row.role <> all (tenancy.roles()), true)),
      (4, 'role', 'of a personal organization owner is only the person whose it is',
        v_organization.kind = 'personal' and v_row.role = 'owner' and v_organization.billing_user_id <> v_user_id)
    ) as c (position, name, text, is_so)
    where c.is_so
    order by c.position
    limit 1;
    if problem is not null then
      outcome := 'bad';
      return next;
      continue;
    end if;

    insert into tenancy.memberships (organization_id, user_id, role)
    values (v_organization.id, v_user_id, v_row.role)
    on conflict do nothing;
    if found then
      update tenancy.users u
      set default_organization_id = v_organization.id
      where u.id = v_user_id and u.default_organization_id is null;
      outcome := 'created';
    else
      select m.role into strict v_role
      from tenancy.memberships m
      where m.organization_id = v_organization.id and m.user_id = v_user_id;
      outcome := case when v_role = v_row.role then 'unchanged' else 'conflict' end;
      if outcome = 'conflict' then
        problem_column := 'role';
        problem := format('the member is %s', v_role);
      end if;
    end if;
    return next;
  end loop;
end;
$$;

-- The organizations that a file of usage names by slug or id. Those that are not there are left out.
create or replace function tenancy.import_organization_ids(p_names text[])
returns table (name text, organization_id uuid)
language sql
stable
security definer
set search_path = ''
as $$
  select n.name, o.id
  from unnest(p_names) as n (name)
  cross join lateral (select tenancy.find_organization(n.name) as id) as o
  where o.id is not null
$$;

alter function tenancy.import_users(jsonb) owner to goldleaves_kernel;
alter function tenancy.import_organizations(jsonb) owner to goldleaves_kernel;
alter function tenancy.import_memberships(jsonb) owner to goldleaves_kernel;
alter function tenancy.import_organization_ids(text[]) owner to goldleaves_kernel;
grant execute on function tenancy.import_organization_problem(text, text, text, text, boolean, text, text, text) to goldleaves_kernel;
