-- Roles, schemas and the context helpers that column defaults and policies need. Runs as goldleaves_migrator: LOGIN,
-- CREATEROLE, no superuser. Roles belong to the cluster, so several databases may create them at once, and none drops them.
do $$
declare
  v_role text;
begin
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('goldleaves.roles', 0));
  foreach v_role in array array['goldleaves_owner', 'goldleaves_kernel', 'anon', 'member', 'service', 'platform_admin'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
      execute pg_catalog.format('create role %I nologin', v_role);
    end if;
  end loop;
  foreach v_role in array array['authenticator', 'sidecar', 'monitor'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
      execute pg_catalog.format('create role %I login noinherit', v_role);
    end if;
  end loop;
  foreach v_role in array array['goldleaves_owner', 'goldleaves_kernel'] loop
    if not pg_catalog.pg_has_role(current_user, v_role, 'usage') then
      execute pg_catalog.format('grant %I to current_user', v_role);
    end if;
  end loop;
  foreach v_role in array array['anon', 'member', 'service', 'platform_admin'] loop
    if not pg_catalog.pg_has_role('authenticator', v_role, 'member') then
      execute pg_catalog.format('grant %I to authenticator', v_role);
    end if;
  end loop;
  execute pg_catalog.format(
    'grant connect on database %I to authenticator, sidecar, monitor', pg_catalog.current_database()
  );
end
$$;

-- Functions are EXECUTE to PUBLIC until revoked: revoke it before the first one exists.
alter default privileges revoke execute on functions from public;
alter default privileges for role goldleaves_owner revoke execute on functions from public;
alter default privileges for role goldleaves_kernel revoke execute on functions from public;

create schema tenancy authorization goldleaves_owner;
create schema app authorization goldleaves_owner;
create schema metering authorization goldleaves_owner;
create schema billing authorization goldleaves_owner;
create schema stripe authorization goldleaves_owner;
create schema ops authorization goldleaves_owner;

grant usage on schema yoyo to goldleaves_kernel;
grant select on yoyo._yoyo_migration to goldleaves_kernel;

set local role goldleaves_owner;

grant usage on schema tenancy, app, metering, billing, stripe, ops to goldleaves_kernel;
grant usage on schema tenancy to anon, member, service, platform_admin, sidecar;
grant usage on schema app, metering, billing, stripe to member, platform_admin;
grant usage on schema metering, ops to sidecar;
grant usage on schema ops to member;

-- The four settings below are set for one transaction by tenancy.enter() and by nothing else. After a commit a custom setting
-- reads '' and not NULL, hence nullif. No `set search_path` here: it would stop the planner from inlining them into policies.
create function tenancy.current_org()
returns uuid
language sql
stable
parallel safe
as $$ select nullif(pg_catalog.current_setting('app.current_org', true), '')::pg_catalog.uuid $$;

create function tenancy.current_user_id()
returns uuid
language sql
stable
parallel safe
as $$ select nullif(pg_catalog.current_setting('app.current_user_id', true), '')::pg_catalog.uuid $$;

-- A person has one role, an API key its scopes instead, separated by commas: policies list both. The second comparison costs twice
-- the first, for each row; a person who may is through before it.
create function tenancy.current_role_in(variadic p_roles text[])
returns boolean
language sql
stable
parallel safe
as $$
  select coalesce(pg_catalog.current_setting('app.current_org_role', true), '') = any (p_roles)
    or pg_catalog.string_to_array(coalesce(pg_catalog.current_setting('app.current_org_role', true), ''), ',') && p_roles
$$;

-- Only the views organizations and memberships show more than the current organization: all of the caller's.
create function tenancy.my_organizations()
returns uuid[]
language sql
stable
parallel safe
as $$ select coalesce(nullif(pg_catalog.current_setting('app.my_organizations', true), ''), '{}')::pg_catalog.uuid[] $$;

-- UUIDv7, so that keys grow with time. The built-in one exists from PostgreSQL 18 on.
do $$
begin
  if pg_catalog.current_setting('server_version_num')::integer >= 180000 then
    create function ops.new_id() returns uuid language sql volatile parallel safe
      as 'select pg_catalog.uuidv7()';
  else
    create function ops.new_id() returns uuid language sql volatile parallel safe as
      $body$
        select pg_catalog.encode(
          pg_catalog.set_bit(
            pg_catalog.set_bit(
              overlay(
                pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
                placing substring(
                  pg_catalog.int8send((extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint) from 3
                )
                from 1 for 6
              ),
              52, 1
            ),
            53, 1
          ),
          'hex'
        )::pg_catalog.uuid
      $body$;
  end if;
end
$$;

grant execute on function tenancy.current_org(), tenancy.current_user_id(), tenancy.current_role_in(text[]),
  tenancy.my_organizations() to member;
grant execute on function tenancy.current_org() to platform_admin;
grant execute on function tenancy.current_org(), tenancy.current_user_id(), tenancy.current_role_in(text[]) to goldleaves_kernel;
grant execute on function ops.new_id() to member, goldleaves_kernel;

-- What the loader brought to this database: the files with their text, and the objects each of them made.
create table ops.releases (
  id bigint generated always as identity primary key,
  released_at timestamptz not null default now(),
  migration_head text not null,
  fingerprint text not null,
  files jsonb not null,
  objects jsonb not null
);

create table ops.policy_releases (
  id bigint generated always as identity primary key,
  released_at timestamptz not null default now(),
  released_by text not null default session_user,
  table_name text not null,
  fingerprint text not null,
  live jsonb not null
);

reset role;
