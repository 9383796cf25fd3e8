set local role goldleaves_owner;
revoke usage on schema metering from monitor;
alter type metering.parsed_event
  drop attribute request,
  drop attribute source,
  drop attribute workspace_id,
  drop attribute context,
  drop attribute adjusts;
reset role;
