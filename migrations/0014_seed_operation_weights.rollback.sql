-- Events keep what they weighed. Weights that somebody has set since stay as well.
set local role goldleaves_owner;
alter table metering.operation_weights no force row level security;
delete from metering.operation_weights
where organization_id is null
  and effective_from = timestamptz '2000-01-01 00:00+00';
alter table metering.operation_weights force row level security;
reset role;
