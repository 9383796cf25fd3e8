set local role goldleaves_owner;
alter type metering.parsed_event
  drop attribute request,
  drop attribute source,
  drop attribute workspace_id,
  drop attribute context,
  drop attribute adjusts;
reset role;
