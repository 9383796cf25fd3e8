-- Adding to the audit log. An entry is put aside at once, with who asks, and linked into its organization's chain when the
-- transaction commits: then all other locks are taken, and the ends of several chains are locked in order, so that no two
-- writers can wait for each other.

-- Whoever does not belong to one organization is logged in the platform's chain.
create or replace function audit.platform()
returns uuid
language sql
immutable
parallel safe
as $$ select '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid $$;

-- Who does what is being done, from the settings that only PostgREST and tenancy.enter() set, in sessions of `authenticator`.
-- In any other session it is the login role, whatever settings it has.
create or replace function audit.current_actor(
  out actor_type text, out actor_id text, out request_id text, out actor jsonb
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_claims jsonb;
  v_headers jsonb;
  v_email text;
begin
  if session_user <> 'authenticator' then
    actor_type := 'database';
    actor_id := session_user;
    actor := jsonb_build_object('ip', host(inet_client_addr()));
    return;
  end if;

  v_claims := coalesce(nullif(current_setting('request.jwt.claims', true), ''), '{}')::jsonb;
  v_headers := coalesce(nullif(current_setting('request.headers', true), ''), '{}')::jsonb;
  request_id := nullif(current_setting('app.request_id', true), '');
  actor := jsonb_build_object(
    -- The gateway sets it anew. What came before a last proxy is only what somebody says.
    'ip', left(nullif(btrim(regexp_replace(v_headers ->> 'x-forwarded-for', '^.*,', '')), ''), 64),
    'user_agent', left(v_headers ->> 'user-agent', 200)
  );

  case current_setting('role', true)
    when 'member' then
      actor_id := nullif(current_setting('app.current_key_id', true), '');
      if actor_id is not null then
        actor_type := 'api_key';
        return;
      end if;
      actor_type := 'user';
      -- Somebody who signs in for the first time is not in the settings yet.
      select u.id::text, u.email into actor_id, v_email
      from tenancy.users u
      where case
        when tenancy.current_user_id() is not null then u.id = tenancy.current_user_id()
        else u.subject = v_claims ->> 'sub'
      end;
      actor := actor || jsonb_build_object('email', coalesce(v_email, v_claims ->> 'email'));
    when 'service', 'platform_admin' then
      actor_type := current_setting('role', true);
      actor_id := actor_type;
      actor := actor || jsonb_build_object('email', v_claims ->> 'email', 'subject', left(v_claims ->> 'sub', 255));
    else
      actor_type := 'anonymous';
  end case;
end;
$$;

-- Who asked the sidecar to do it, as it says: with an API key, with a token of role service, or a person ("user_id"). p_caller: {"subject", "ip",
-- "user_agent", "request_id", "user_id"}. Sessions of `authenticator` say it themselves, and whoever calls without the two is the login role.
create or replace function audit.actor_of_sidecar(
  p_key_id uuid, p_caller jsonb, out actor_type text, out actor_id text, out request_id text, out actor jsonb
)
language plpgsql
stable
set search_path = ''
as $$
begin
  if session_user = 'authenticator' or (p_key_id is null and p_caller is null) then
    select a.* into actor_type, actor_id, request_id, actor from audit.current_actor() a;
    return;
  end if;
  actor_type := case when p_key_id is not null then 'api_key' when p_caller ? 'user_id' then 'user' else 'service' end;
  actor_id := coalesce(p_key_id::text, p_caller ->> 'user_id', 'service');
  request_id := p_caller ->> 'request_id';
  actor := jsonb_build_object(
    'ip', left(p_caller ->> 'ip', 64),
    'user_agent', left(p_caller ->> 'user_agent', 200),
    'subject', left(p_caller ->> 'subject', 255),
    'email', (select u.email from tenancy.users u where u.id = (p_caller ->> 'user_id')::uuid)
  );
end;
$$;

-- Whether nothing else waits in this transaction, asked for each entry. Not a look into the table: thousands of entries would each
-- look at all the others. The setting goes back with a savepoint, as the entries do.
create or replace function audit.is_first_entry()
returns boolean
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_transaction text := pg_current_xact_id()::text;
begin
  if current_setting('app.audit_pending', true) is not distinct from v_transaction then
    return false;
  end if;
  perform set_config('app.audit_pending', v_transaction, true);
  return true;
end;
$$;

-- p_personal is {"before": {…}, "after": {…}}: columns that tell of people, which stay outside the chain. In p_action the verb
-- follows its target: membership.removed.
create or replace function audit.append_for(
  p_key_id uuid, p_caller jsonb, p_organization_id uuid, p_action text, p_target_type text, p_target_id text, p_before jsonb, p_after jsonb,
  p_personal jsonb default null
)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into audit.pending (
    chain_id, actor_type, actor_id, action, target_type, target_id, before, after, request_id, actor, change, is_first
  )
  select
    coalesce(p_organization_id, audit.platform()), a.actor_type, a.actor_id, p_action, p_target_type, p_target_id, p_before, p_after,
    a.request_id, nullif(jsonb_strip_nulls(a.actor), '{}'), nullif(p_personal, '{}'), audit.is_first_entry()
  from audit.actor_of_sidecar(p_key_id, p_caller) a
$$;

-- The same, where whoever asks is known from the session.
create or replace function audit.append(
  p_organization_id uuid, p_action text, p_target_type text, p_target_id text, p_before jsonb, p_after jsonb,
  p_personal jsonb default null
)
returns void
language sql
volatile
set search_path = ''
as $$
  select audit.append_for(null, null, p_organization_id, p_action, p_target_type, p_target_id, p_before, p_after, p_personal)
$$;

-- Independent of timezone, DateStyle and version of Postgres: the text of a jsonb array, times as microseconds. docs/operations.md
-- says how to compute it elsewhere.
create or replace function audit.hash_of(p_entry audit.log)
returns bytea
language sql
stable
set search_path = ''
as $$
  select sha256(
    p_entry.previous_hash || convert_to(
      jsonb_build_array(
        p_entry.organization_id, p_entry.position, p_entry.id, (extract(epoch from p_entry.recorded_at) * 1000000)::bigint,
        p_entry.actor_type, p_entry.actor_id, p_entry.action, p_entry.target_type, p_entry.target_id, p_entry.changed_columns,
        p_entry.before, p_entry.after, p_entry.request_id,
        encode(p_entry.actor_digest, 'hex'), encode(p_entry.change_digest, 'hex')
      )::text,
      'UTF8'
    )
  )
$$;

create or replace function audit.digest_of(p_salt bytea, p_data jsonb)
returns bytea
language sql
stable
set search_path = ''
as $$ select sha256(p_salt || convert_to(p_data::text, 'UTF8')) $$;

-- What the first entry of a chain has for the hash of the one before it.
create or replace function audit.no_hash()
returns bytea
language sql
immutable
parallel safe
as $$ select pg_catalog.decode(pg_catalog.repeat('00', 32), 'hex') $$;

-- One part of what an entry tells of people, on its way to audit.personal, where there is any.
create or replace function audit.set_apart(p_organization_id uuid, p_position bigint, p_part text, p_salt bytea, p_data jsonb)
returns void
language sql
volatile
set search_path = ''
as $$
  insert into audit.personal (organization_id, position, part, salt, data)
  select p_organization_id, p_position, p_part, p_salt, p_data
  where p_data is not null
$$;

create or replace function audit.new_salt()
returns bytea
language sql
volatile
set search_path = ''
as $$ select uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) $$;

-- Whether the provider's people did it, of whom tenants are told nothing more. Keys of the provider are theirs.
create or replace function audit.is_providers(p_actor_type text, p_actor_id text)
returns boolean
language sql
stable
set search_path = ''
as $$
  select case
    when p_actor_type = 'api_key'
      then exists (select from tenancy.api_keys k where k.id = p_actor_id::uuid and k.kind = 'provider')
    else p_actor_type not in ('user', 'anonymous')
  end
$$;

-- Links all entries of the transaction. What comes after, if somebody has set constraints immediate, is linked anew.
create or replace function audit.link_pending()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_chain_id uuid;
  v_position bigint;
  v_hash bytea;
  v_pending audit.pending;
  v_entry audit.log;
  v_actor_salt bytea;
  v_change_salt bytea;
begin
  -- In one pass, since a transaction can have entries of thousands of chains.
  for v_pending in select * from audit.pending order by chain_id, id loop
    if v_pending.chain_id is distinct from v_chain_id then
      update audit.heads set position = v_position, hash = v_hash where organization_id = v_chain_id;
      v_chain_id := v_pending.chain_id;
      insert into audit.heads (organization_id, position, hash) values (v_chain_id, 0, audit.no_hash())
      on conflict do nothing;
      select position, hash into strict v_position, v_hash from audit.heads where organization_id = v_chain_id for update;
    end if;

    v_position := v_position + 1;
    v_actor_salt := audit.new_salt();
    v_change_salt := audit.new_salt();
    v_entry := (
      v_chain_id, v_position, ops.new_id(), v_pending.recorded_at, v_pending.actor_type, v_pending.actor_id,
      v_pending.action, v_pending.target_type, v_pending.target_id,
      array(
        select distinct k
        from jsonb_object_keys(
          coalesce(v_pending.before, '{}') || coalesce(v_pending.after, '{}')
          || coalesce(v_pending.change -> 'before', '{}') || coalesce(v_pending.change -> 'after', '{}')
        ) as k
        order by k
      ),
      v_pending.before, v_pending.after, v_pending.request_id,
      audit.digest_of(v_actor_salt, v_pending.actor), audit.digest_of(v_change_salt, v_pending.change),
      v_hash, null
    );
    v_hash := audit.hash_of(v_entry);
    v_entry.hash := v_hash;
    insert into audit.log select v_entry.*;
    perform audit.set_apart(
      v_chain_id, v_position, case when audit.is_providers(v_pending.actor_type, v_pending.actor_id) then 'staff' else 'actor' end,
      v_actor_salt, v_pending.actor
    );
    perform audit.set_apart(v_chain_id, v_position, 'change', v_change_salt, v_pending.change);
  end loop;
  update audit.heads set position = v_position, hash = v_hash where organization_id = v_chain_id;

  -- Others' rows are not visible, so these are our own.
  delete from audit.pending;
  perform set_config('app.audit_pending', '', true);
  return null;
end;
$$;

alter function audit.link_pending() owner to goldleaves_kernel;

grant execute on function audit.platform(), audit.current_actor(), audit.actor_of_sidecar(uuid, jsonb), audit.is_first_entry(),
  audit.hash_of(audit.log), audit.digest_of(bytea, jsonb), audit.no_hash(), audit.set_apart(uuid, bigint, text, bytea, jsonb),
  audit.new_salt(), audit.is_providers(text, text),
  audit.append_for(uuid, jsonb, uuid, text, text, text, jsonb, jsonb, jsonb),
  audit.append(uuid, text, text, text, jsonb, jsonb, jsonb) to goldleaves_kernel;

drop trigger if exists link_pending on audit.pending;
create constraint trigger link_pending after insert on audit.pending deferrable initially deferred
  for each row when (new.is_first) execute function audit.link_pending();
