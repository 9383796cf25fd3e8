-- What an owner does about the subscription of the organization: has it end with its period, and takes that back. All else is the provider's,
-- whose backend knows who has paid: a cancellation that staff has planned, too.
create or replace function billing.require_subscriber()
returns void
language plpgsql
stable
set search_path = ''
as $$
begin
  if not tenancy.current_role_in('owner') then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: only an owner of the organization, and platform_admin, cancel its subscription or take that back',
      hint = 'GET /memberships says who is owner.';
  end if;
end;
$$;

create or replace function billing.cancel_own_subscription(p_reason text)
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  perform billing.require_subscriber();
  perform billing.cancel_subscription(tenancy.current_org(), true, p_reason, null);
end;
$$;

create or replace function billing.resume_own_subscription()
returns void
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_at timestamptz;
  v_now billing.subscription_phases;
  v_agreed record;
begin
  perform billing.require_subscriber();
  v_at := billing.begin_subscription_change(tenancy.current_org(), null);
  v_now := billing.live_phase(tenancy.current_org(), v_at);
  select * into v_agreed from billing.agreed_ahead(v_now, v_at);
  if v_agreed.cancel_at is null and v_now.status not in ('trialing', 'active') then
    raise exception using
      errcode = 'PT403',
      message = format('ROLE_REQUIRED: the subscription is %s, and only platform_admin resumes that', v_now.status),
      hint = 'Ask the provider''s staff.';
  elsif v_agreed.cancel_at is not null
    and not exists (
      select
      from billing.subscription_phases f
      join tenancy.users u on u.id::text = f.made_by
      where f.organization_id = v_now.organization_id
        and f.starts_at = v_agreed.cancel_at
    )
  then
    raise exception using
      errcode = 'PT403',
      message = 'ROLE_REQUIRED: the provider''s staff has planned the cancellation, and only platform_admin takes it back',
      hint = 'Ask the provider''s staff.';
  end if;
  if billing.plan_ahead(v_now, v_agreed.change_at, v_agreed.change_plan, null, null) then
    perform billing.tell_subscription(tenancy.current_org());
  end if;
end;
$$;

alter function billing.cancel_own_subscription(text) owner to goldleaves_kernel;
alter function billing.resume_own_subscription() owner to goldleaves_kernel;
grant execute on function billing.require_subscriber() to goldleaves_kernel;
grant execute on function billing.cancel_own_subscription(text), billing.resume_own_subscription() to member;
