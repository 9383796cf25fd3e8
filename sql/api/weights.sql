-- What operations weigh, in compute units.
create view api.operation_weights with (security_invoker) as
select organization_id, operation, weight, effective_from, created_at
from metering.operation_weights;

comment on view api.operation_weights is 'What a unit of an operation weighs: quantity times weight are an event''s weighted units. Those for all organizations, and those of your own, which win.';
comment on column api.operation_weights.organization_id is 'Whose weight it is; null: of all that have none of their own.';
comment on column api.operation_weights.operation is 'Name of the event, such as ai_completion.';
comment on column api.operation_weights.weight is 'Weighted units that one unit of its quantity is.';
comment on column api.operation_weights.effective_from is 'For what happens from then on (UTC), until the next one.';
comment on column api.operation_weights.created_at is 'When it was set (UTC).';

grant select on api.operation_weights to member, platform_admin;

create function api.set_operation_weight(
  operation text, weight numeric, organization_id uuid default null, effective_from timestamptz default null
)
returns api.operation_weights
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_made api.operation_weights;
begin
  perform tenancy.require_staff('sets what operations weigh', 'GET /operation_weights lists what is set.');
  select w.organization_id, w.operation, w.weight, w.effective_from, w.created_at into v_made
  from metering.set_operation_weight(
    set_operation_weight.operation, set_operation_weight.weight, set_operation_weight.organization_id, set_operation_weight.effective_from
  ) w;
  return v_made;
end;
$$;

comment on function api.set_operation_weight(text, numeric, uuid, timestamptz) is $$Set what an operation weighs, from a moment on

For platform_admin. operation is the name of an event. With organization_id for one organization, without it for all that have no
weight of their own. Without effective_from it counts for what happens from now on. What is recorded keeps its weighted units: so
effective_from may lie in the past only where the operation has no weight yet. Set again for the same moment ahead, it is put right.
Returns the weight as operation_weights shows it.

Errors: INVALID_WEIGHT (400), ROLE_REQUIRED (403), ORGANIZATION_NOT_FOUND (404).$$;

grant execute on function api.set_operation_weight(text, numeric, uuid, timestamptz) to member, service, platform_admin;
