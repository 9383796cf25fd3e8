-- Whether the audit log is what was written. These read all chains: they are for `goldleaves audit verify`, which runs as the
-- migrator, a member of the kernel, and EXECUTE for nobody else.

-- The first broken entry of each chain, of one organization's or of all. id is null when the
-- entry is gone. One statement, so one snapshot: writers go on meanwhile.
create or replace function audit.verify(p_organization_id uuid default null)
returns table (organization_id uuid, "position" bigint, id uuid, problem text)
language sql
stable
security definer
set search_path = ''
as $$
  with entries as (
    select l.organization_id, l.position, l.id, l.previous_hash, l.hash, l.actor_digest, l.change_digest,
      audit.hash_of(l) as right_hash,
      coalesce(lag(l.position) over chain, 0) as previous_position,
      coalesce(lag(l.hash) over chain, audit.no_hash()) as right_previous_hash
    from audit.log l
    where p_organization_id is null or l.organization_id = p_organization_id
    window chain as (partition by l.organization_id order by l.position)
  ),
  ends as (
    select distinct on (e.organization_id) e.organization_id, e.position, e.id, e.hash
    from entries e
    order by e.organization_id, e.position desc
  ),
  found (organization_id, position, id, rank, problem) as (
    select e.organization_id, e.previous_position + 1, null::uuid, 1,
      format('missing: the next one that is there is entry %s', e.position)
    from entries e
    where e.position <> e.previous_position + 1
    union all
    select e.organization_id, e.position, e.id, 2, 'changed: its hash is not that of what it says'
    from entries e
    where e.hash <> e.right_hash
    union all
    select e.organization_id, e.position, e.id, 3, 'it does not follow the entry before it: one of the two was replaced'
    from entries e
    where e.position = e.previous_position + 1 and e.previous_hash <> e.right_previous_hash
    union all
    -- What is gone was erased. What is there has to be what was written.
    select e.organization_id, e.position, e.id, 4, format('changed: its personal data (%s) is not what was written', p.part)
    from entries e
    join audit.personal p on p.organization_id = e.organization_id and p.position = e.position
    where audit.digest_of(p.salt, p.data) is distinct from case p.part when 'change' then e.change_digest else e.actor_digest end
    union all
    select
      coalesce(h.organization_id, e.organization_id),
      case when h.position = e.position or h.position is null then e.position else least(h.position, coalesce(e.position, 0)) + 1 end,
      case
        when h.position < e.position then (
          select a.id from entries a where a.organization_id = h.organization_id and a.position = h.position + 1
        )
        when h.position = e.position or h.position is null then e.id
      end,
      5,
      case
        when h.position is null then 'the end of the chain was removed: this is its last entry'
        when h.position > coalesce(e.position, 0) then format('missing: the chain ends with entry %s', h.position)
        when h.position < e.position then format('added by hand: the chain ends with entry %s', h.position)
        else 'the end of the chain has another hash'
      end
    from ends e
    full join (
      select * from audit.heads h where p_organization_id is null or h.organization_id = p_organization_id
    ) as h on h.organization_id = e.organization_id
    where (h.position, h.hash) is distinct from (e.position, e.hash)
  )
  select distinct on (f.organization_id) f.organization_id, f.position, f.id, f.problem
  from found f
  order by f.organization_id, f.position, f.rank
$$;

-- The ends of the chains, for somebody to keep elsewhere: a chain that was rewritten as a whole no longer passes through them.
create or replace function audit.ends(p_organization_id uuid default null)
returns table (organization_id uuid, "position" bigint, hash text)
language sql
stable
security definer
set search_path = ''
as $$
  select h.organization_id, h.position, encode(h.hash, 'hex')
  from audit.heads h
  where p_organization_id is null or h.organization_id = p_organization_id
  order by h.organization_id
$$;

-- Of ends that were kept, [{"organization_id", "position", "hash"}], those that are no longer in their chain.
create or replace function audit.verify_ends(p_ends jsonb)
returns table (organization_id uuid, "position" bigint, id uuid, problem text)
language sql
stable
security definer
set search_path = ''
as $$
  select a.organization_id, a.position, l.id,
    case when l.id is null then 'missing: it was there when the ends were kept' else 'rewritten: it had another hash when the ends were kept' end
  from jsonb_to_recordset(p_ends) as a (organization_id uuid, position bigint, hash text)
  left join audit.log l on l.organization_id = a.organization_id and l.position = a.position
  where a.position > 0
    and encode(l.hash, 'hex') is distinct from a.hash
  order by a.organization_id, a.position
$$;

-- Tables on which somebody disabled or dropped a trigger of the audit log: their changes are not in it, or it does not only grow.
create or replace function audit.unwatched()
returns table (table_name text)
language sql
stable
set search_path = ''
as $$
  with released as (
    select substring(n.name from ' on (.+)$') as table_name, n.name
    from (select r.objects from ops.releases r order by r.id desc limit 1) as r,
      jsonb_each(r.objects) as f (path, names),
      jsonb_array_elements_text(f.names) as n (name)
    where n.name like 'trigger %'
      and (f.path like 'sql/audit/%' or n.name ~ '^trigger watch(_truncate)? on ')
  )
  select r.table_name
  from released r
  where not exists (
    select from pg_catalog.pg_trigger t
    where format('trigger %I on %s', t.tgname, t.tgrelid::regclass) = r.name
      and t.tgenabled not in ('D', 'R')
  )
  group by 1
  order by 1
$$;

alter function audit.verify(uuid) owner to goldleaves_kernel;
alter function audit.ends(uuid) owner to goldleaves_kernel;
alter function audit.verify_ends(jsonb) owner to goldleaves_kernel;
