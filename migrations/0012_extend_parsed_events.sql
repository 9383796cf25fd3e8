-- A batch is made of one request or of several, and its events say more: where they happened, and what to do when they come late.
set local role goldleaves_owner;

alter type metering.parsed_event
  add attribute request integer,
  add attribute source text,
  add attribute workspace_id text,
  add attribute context jsonb,
  -- Recorded now when its period is finalized, instead of being turned down.
  add attribute adjusts boolean;

-- To ask metering.repeated_events().
grant usage on schema metering to monitor;

reset role;
