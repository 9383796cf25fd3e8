set local role goldleaves_owner;
drop index metering.usage_events_late;
reset role;
