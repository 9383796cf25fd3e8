-- Erasing what the audit log knows of people: the data and its salt go, the chain keeps the digest, and so stays whole. For
-- `goldleaves audit erase`, which runs as the migrator, a member of the kernel; EXECUTE for nobody else. That data was erased is itself
-- an entry in each chain, without saying whose.

create or replace function audit.erase_entries(p_organization_ids uuid[], p_positions bigint[], p_parts text[])
returns bigint
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_chain record;
  v_erased bigint := 0;
begin
  for v_chain in
    with erased as (
      delete from audit.personal p
      using unnest(p_organization_ids, p_positions, p_parts) as e (organization_id, position, part)
      where p.organization_id = e.organization_id and p.position = e.position and p.part = e.part
      returning p.organization_id
    )
    select e.organization_id, count(*) as entries
    from erased e
    group by e.organization_id
  loop
    perform audit.append(
      v_chain.organization_id, 'personal_data.erased', 'audit_log', null, null, jsonb_build_object('entries', v_chain.entries)
    );
    v_erased := v_erased + v_chain.entries;
  end loop;
  return v_erased;
end;
$$;

-- Everything that names the address: who acted with it, who was invited by it, the text of a row that mentions it.
create or replace function audit.erase_email(p_email text)
returns bigint
language sql
volatile
security definer
set search_path = ''
as $$
  select audit.erase_entries(array_agg(p.organization_id), array_agg(p.position), array_agg(p.part))
  from audit.personal p
  where audit.mentions(p.data, p_email)
$$;

-- As a whole word: what belongs to joann@example.com stays when ann@example.com goes.
create or replace function audit.mentions(p_data jsonb, p_email text)
returns boolean
language sql
immutable
set search_path = ''
as $$
  select p_email ~ '.@.' and lower(p_data::text) ~ (
    '(^|[^a-z0-9._%+-])' || regexp_replace(lower(p_email), '([^a-z0-9@])', '\\\1', 'g') || '($|[^a-z0-9._-]|\.($|[^a-z0-9]))'
  )
$$;

-- What a person did, what mentions their e-mail or subject, and the names of their personal organizations, which come from it.
-- p_user is an id, or the subject of their token.
create or replace function audit.erase_user(p_user text)
returns bigint
language sql
volatile
security definer
set search_path = ''
as $$
  with person as (
    select u.id::text as id, u.subject, u.email from tenancy.users u where p_user in (u.id::text, u.subject)
    union all
    -- Also somebody who is no user any more, or never was one.
    select p_user, p_user, null where not exists (select from tenancy.users u where p_user in (u.id::text, u.subject))
  )
  select audit.erase_entries(array_agg(p.organization_id), array_agg(p.position), array_agg(p.part))
  from person
  join audit.log l on true
  join audit.personal p on p.organization_id = l.organization_id and p.position = l.position
  where (l.actor_id = person.id and l.actor_type in ('user', 'anonymous'))
    or (l.target_id = person.id and p.part = 'change') -- but not whoever did it to them
    or p.data ->> 'subject' = person.subject
    or audit.mentions(p.data, person.email)
    or (
      l.target_type = 'organization'
      and l.target_id in (
        select o.id::text from tenancy.organizations o where o.billing_user_id::text = person.id and o.kind = 'personal'
      )
    )
$$;

create or replace function audit.erase_organization(p_organization_id uuid)
returns bigint
language sql
volatile
security definer
set search_path = ''
as $$
  select audit.erase_entries(array_agg(p.organization_id), array_agg(p.position), array_agg(p.part))
  from audit.personal p
  where p.organization_id = p_organization_id
$$;

alter function audit.erase_email(text) owner to goldleaves_kernel;
alter function audit.erase_user(text) owner to goldleaves_kernel;
alter function audit.erase_organization(uuid) owner to goldleaves_kernel;
grant execute on function audit.erase_entries(uuid[], bigint[], text[]), audit.mentions(jsonb, text) to goldleaves_kernel;
