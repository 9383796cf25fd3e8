set local role goldleaves_owner;
drop table metering.stored_resources;
reset role;
