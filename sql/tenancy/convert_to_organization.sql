-- A personal organization becomes an organization: the same one, with all that is in it, under a name and slug of its own. From then on
-- it pays for itself. One transaction; what goes wrong at any step leaves no trace, and the error names the step.

-- What the conversion changes or relies on, locked. Nobody may write usage meanwhile, so it waits for rows only a moment, less than
-- until a deadlock is called, then lets go of everything and tries again. Not `for update`: rows of those who write usage refer to the
-- organization's, and some have locked it for that before they wait for the period lock.
create or replace function tenancy.lock_for_conversion(p_organization_id uuid)
returns timestamptz
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_lock_timeout text := current_setting('lock_timeout');
  v_tries integer := 0;
  v_billing_start_at timestamptz;
begin
  loop
    begin
      v_billing_start_at := billing.start_billing(p_organization_id);
      set local lock_timeout = '200ms';
      perform from tenancy.organizations o where o.id = p_organization_id for no key update;
      perform from tenancy.workspaces w where w.organization_id = p_organization_id for update;
      perform set_config('lock_timeout', v_lock_timeout, true);
      return v_billing_start_at;
    exception when lock_not_available or deadlock_detected then
      v_tries := v_tries + 1;
      if v_tries = 50 then
        raise;
      end if;
      perform pg_sleep(0.02 + random() * 0.1);
    end;
  end loop;
end;
$$;

create or replace function tenancy.require_convertible(p_organization_id uuid, p_slug text)
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if not exists (select from tenancy.organizations where id = p_organization_id and kind = 'personal') then
    raise exception using
      errcode = 'PT409',
      message = 'ALREADY_AN_ORGANIZATION: only a personal organization can be converted, once',
      hint = 'GET /organizations shows the kind of each. To found another one, POST /rpc/create_organization.';
  end if;
  if exists (select from tenancy.organizations where slug = p_slug and id <> p_organization_id) then
    perform tenancy.raise_slug_taken(p_slug);
  end if;
end;
$$;

create or replace function tenancy.convert_to_organization(p_name text, p_slug text)
returns tenancy.organizations
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_organization_id uuid := tenancy.current_org();
  v_step text;
  v_state text;
  v_constraint text;
  v_message text;
  v_billing_start_at timestamptz;
  v_organization tenancy.organizations;
begin
  if tenancy.current_user_id() is null or not tenancy.current_role_in('owner') then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only its owner converts a personal organization',
      hint = 'Ask the person whose personal organization it is.';
  end if;
  perform tenancy.require_name(p_name);
  perform tenancy.require_slug(p_slug);
  -- Asked before the locks as well: whom it refuses anyhow holds up nobody who writes usage, however often they try.
  perform tenancy.require_convertible(v_organization_id, p_slug);

  begin
    v_step := 'lock';
    v_billing_start_at := tenancy.lock_for_conversion(v_organization_id);
    perform tenancy.require_convertible(v_organization_id, p_slug);

    -- Nobody's role changes: the one owner that a personal organization has is who calls.
    v_step := 'organization';
    update tenancy.organizations
    set kind = 'organization', name = btrim(p_name), slug = p_slug, billing_start_at = v_billing_start_at
    where id = v_organization_id
    returning * into strict v_organization;

    v_step := 'workspaces';
    update tenancy.workspaces set place = null where organization_id = v_organization_id;
  exception when others then
    get stacked diagnostics
      v_state = returned_sqlstate, v_constraint = constraint_name, v_message = message_text;
    if v_state like 'PT%' or v_state = '25006' then  -- the second: with GET, which may not write
      raise;
    end if;
    if v_state = '23505' and v_constraint = 'organizations_slug_key' then
      perform tenancy.raise_slug_taken(p_slug);
    end if;
    raise exception using
      errcode = 'PT500',
      message = format('CONVERSION_FAILED: step %s: %s', v_step, v_message),
      detail = format('step: %s', v_step),
      hint = 'Nothing was changed. Try again.';
  end;
  return v_organization;
end;
$$;

-- Who pays for what follows from these columns, so they change by a conversion alone, whoever asks.
create or replace function tenancy.guard_conversion()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  if tg_op = 'UPDATE'
    and (old.kind, new.kind) = ('personal', 'organization')
    and new.billing_user_id = old.billing_user_id
  then
    return new;
  end if;
  raise exception using
    errcode = 'PT409',
    message = 'CONVERSION_ONLY: kind, billing_start_at and billing_user_id of an organization change by its conversion alone, once',
    hint = 'The owner of a personal organization calls convert_to_organization.';
end;
$$;

create or replace trigger guard_conversion_insert before insert on tenancy.organizations
  for each row when (new.billing_start_at is not null) execute function tenancy.guard_conversion();
create or replace trigger guard_conversion before update on tenancy.organizations
  -- Not as one comparison of rows: a restored dump has that in other words, which would look like a change by hand.
  for each row when (
    old.kind is distinct from new.kind
    or old.billing_start_at is distinct from new.billing_start_at
    or old.billing_user_id is distinct from new.billing_user_id
  ) execute function tenancy.guard_conversion();

alter function tenancy.convert_to_organization(text, text) owner to goldleaves_kernel;
grant execute on function tenancy.lock_for_conversion(uuid), tenancy.require_convertible(uuid, text) to goldleaves_kernel;
grant execute on function tenancy.convert_to_organization(text, text) to member, service, platform_admin;
