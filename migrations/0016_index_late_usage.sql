-- Late usage, and what was taken back of finalized periods: rare, and rated by itself. A migration of its own, so that while it reads all
-- events only who writes usage waits, and nobody for what 0015 locks.
set local role goldleaves_owner;
create index usage_events_late on metering.usage_events (organization_id, occurred_at) where belongs_at is not null;
reset role;
