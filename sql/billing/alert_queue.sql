-- Which organizations' alerts are to be looked at again (billing.fire_alerts): those whose usage was rolled up, and those whose limits, budget,
-- plan or alerts changed. One row more does no harm, so nobody looks whether there is one; a row that is missing would be an alert that never comes.

create or replace function billing.queue_alerts(p_organization_id uuid)
returns void
language sql
volatile
set search_path = ''
as $$ insert into billing.alert_queue (organization_id) values (p_organization_id) $$;

-- Of tables whose rows say what an organization has, or count by themselves: what was written is `changed`.
create or replace function billing.queue_changed()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  insert into billing.alert_queue (organization_id)
  select distinct c.organization_id
  from changed c
  where c.organization_id is not null;
  return null;
end;
$$;

create or replace function billing.queue_changed_plan()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  insert into billing.alert_queue (organization_id) values (new.id);
  return null;
end;
$$;

-- organizations.plan is the plan of now, with a subscription and without.
create or replace function billing.queue_organizations_of_plan()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
begin
  insert into billing.alert_queue (organization_id)
  select o.id
  from tenancy.organizations o
  where o.plan in (select c.plan_code from changed c);
  return null;
end;
$$;

-- What time alone changes: what is stored goes on being used, a period begins, an override ends. Each hour, for whoever has something that may
-- cross a threshold by that, spread over the hour.
create or replace function billing.queue_alerts_of_time()
returns void
language sql
volatile
set search_path = ''
as $$
  insert into billing.alert_queue (organization_id, due_at)
  select o.id, clock_timestamp() + random() * interval '1 hour'
  from tenancy.organizations o
  where o.kind <> 'platform'
    and (
      exists (select from billing.budgets b where b.organization_id = o.id)
      or exists (select from billing.usage_alerts a where a.organization_id = o.id and a.threshold_kind = 'absolute')
      or exists (select from billing.entitlement_overrides v where v.organization_id = o.id)
      or exists (select from billing.plan_features f where f.plan_code = o.plan and f.limit_value > 0)
    )
    and not exists (select from billing.alert_queue q where q.organization_id = o.id)
$$;

alter function billing.queue_changed() owner to goldleaves_kernel;
alter function billing.queue_changed_plan() owner to goldleaves_kernel;
alter function billing.queue_organizations_of_plan() owner to goldleaves_kernel;
grant execute on function billing.queue_alerts(uuid), billing.queue_alerts_of_time() to goldleaves_kernel;

create or replace trigger queue_alerts after update of plan on tenancy.organizations
  for each row when (old.plan <> new.plan) execute function billing.queue_changed_plan();


-- What counts by itself is more only by a row more.
create or replace trigger queue_alerts_of_insert after insert on tenancy.memberships
  referencing new table as changed
  for each statement execute function billing.queue_changed();
create or replace trigger queue_alerts_of_insert after insert on tenancy.invitations
  referencing new table as changed
  for each statement execute function billing.queue_changed();
create or replace trigger queue_alerts_of_insert after insert on tenancy.workspaces
  referencing new table as changed
  for each statement execute function billing.queue_changed();
create or replace trigger queue_alerts_of_insert after insert on tenancy.api_keys
  referencing new table as changed
  for each statement execute function billing.queue_changed();

create or replace trigger queue_alerts_of_insert after insert on billing.entitlement_overrides
  referencing new table as changed
  for each statement execute function billing.queue_changed();
create or replace trigger queue_alerts_of_update after update on billing.entitlement_overrides
  referencing new table as changed
  for each statement execute function billing.queue_changed();
create or replace trigger queue_alerts_of_delete after delete on billing.entitlement_overrides
  referencing old table as changed
  for each statement execute function billing.queue_changed();

create or replace trigger queue_alerts_of_insert after insert on billing.subscription_phases
  referencing new table as changed
  for each statement execute function billing.queue_changed();
create or replace trigger queue_alerts_of_update after update on billing.subscription_phases
  referencing new table as changed
  for each statement execute function billing.queue_changed();

create or replace trigger queue_alerts_of_insert after insert on billing.plan_features
  referencing new table as changed
  for each statement execute function billing.queue_organizations_of_plan();
create or replace trigger queue_alerts_of_update after update on billing.plan_features
  referencing new table as changed
  for each statement execute function billing.queue_organizations_of_plan();
create or replace trigger queue_alerts_of_delete after delete on billing.plan_features
  referencing old table as changed
  for each statement execute function billing.queue_organizations_of_plan();
