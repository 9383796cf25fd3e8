drop type metering.parsed_event;
drop table metering.rejected_events;
drop table metering.event_keys;
drop table metering.usage_events;
drop table metering.generations;
drop table metering.meters;
