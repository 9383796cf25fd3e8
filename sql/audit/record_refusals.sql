-- What the sidecar refused: logins, keys, organizations of others, second workspaces. It reports them in batches, each with how
-- often it happened; what somebody tried is their text, and so is kept apart from the chain. Who is refused an organization came
-- without one, and so without an id: people are found by their subject, as nobody else is.
create or replace function audit.record_refusals(p_refusals jsonb)
returns void
language sql
volatile
security definer
set search_path = ''
as $$
  insert into audit.pending (chain_id, actor_type, actor_id, action, target_type, target_id, after, actor, change, is_first)
  select
    -- Only what a caller did in their own organization. Nobody writes into the log of another one by being refused there.
    case when r.code ~ '^(WORKSPACE_LIMIT|CONVERSION_FAILED)$' then coalesce(r.organization_id, audit.platform()) else audit.platform() end,
    case
      when r.key_id is not null then 'api_key'
      when who.providers_role is not null then who.providers_role
      when who.user_id is not null then 'user'
      else 'anonymous'
    end,
    coalesce(r.key_id::text, who.providers_role, who.user_id::text),
    'refused.' || lower(regexp_replace(r.code, '[^A-Za-z0-9_]', '_', 'g')),
    'request',
    null,
    jsonb_build_object('code', r.code, 'count', r.count, 'first_at', r.first_at, 'last_at', r.last_at),
    nullif(jsonb_strip_nulls(jsonb_build_object('ip', left(r.ip, 64), 'subject', left(r.subject, 255))), '{}'),
    case when r.detail is not null then jsonb_build_object('after', jsonb_build_object('detail', left(r.detail, 400))) end,
    audit.is_first_entry()
  from jsonb_to_recordset(p_refusals) as r (
    code text, organization_id uuid, subject text, role text, user_id uuid, key_id uuid, ip text, detail text, count bigint,
    first_at timestamptz, last_at timestamptz
  )
  cross join lateral (
    select
      case when r.role in ('service', 'platform_admin') then r.role end as providers_role,
      coalesce(r.user_id, (select u.id from tenancy.users u where r.role = 'member' and u.subject = r.subject)) as user_id
  ) as who
  where r.code <> ''
$$;

alter function audit.record_refusals(jsonb) owner to goldleaves_kernel;
grant execute on function audit.record_refusals(jsonb) to sidecar;
