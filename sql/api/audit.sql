-- The audit log, with what it still knows of people. A function and no join: writing into a view of one
-- table is refused for want of a right, into one of several with an error that looks like a fault of ours.
create view api.audit_log with (security_invoker) as
select
  l.organization_id,
  l.position,
  l.id,
  l.recorded_at,
  l.actor_type,
  l.actor_id,
  audit.told_of(l.organization_id, l.position, 'actor', 'staff') ->> 'email' as email,
  audit.told_of(l.organization_id, l.position, 'actor', 'staff') ->> 'ip' as ip,
  audit.told_of(l.organization_id, l.position, 'actor', 'staff') ->> 'user_agent' as user_agent,
  l.request_id,
  l.action,
  l.target_type,
  l.target_id,
  l.changed_columns,
  nullif(coalesce(l.before, '{}') || coalesce(audit.told_of(l.organization_id, l.position, 'change') -> 'before', '{}'), '{}') as before,
  nullif(coalesce(l.after, '{}') || coalesce(audit.told_of(l.organization_id, l.position, 'change') -> 'after', '{}'), '{}') as after,
  encode(l.hash, 'hex') as hash
from audit.log l;

comment on view api.audit_log is $$Who changed what, when and from where, in the current organization. For owners and admins.

It only grows. Each entry carries the hash of the one before it. What it tells of people can be erased on request: then those
columns are null, and the names of what changed stay.$$;
comment on column api.audit_log.organization_id is 'Whose log it is. Only the provider''s staff sees the platform''s own: 00000000-0000-0000-0000-000000000000.';
comment on column api.audit_log.position is 'Number of the entry in the organization''s log, from 1 without gaps.';
comment on column api.audit_log.id is 'Id of the entry.';
comment on column api.audit_log.recorded_at is 'When it was changed (UTC).';
comment on column api.audit_log.actor_type is 'user, api_key, service and platform_admin (the provider''s side), database (somebody at the database itself), anonymous.';
comment on column api.audit_log.actor_id is 'Id of the user or the API key; else the role. Null when nobody knows who it was.';
comment on column api.audit_log.email is 'E-mail of the person who did it. Null for the provider''s people, and once it is erased.';
comment on column api.audit_log.ip is 'Address that the request came from. Null for the provider''s people, and once it is erased.';
comment on column api.audit_log.user_agent is 'What the client called itself. Null for the provider''s people, and once it is erased.';
comment on column api.audit_log.request_id is 'X-Request-ID of the request.';
comment on column api.audit_log.action is 'What was done to what, such as membership.changed.';
comment on column api.audit_log.target_type is 'What was changed, such as membership.';
comment on column api.audit_log.target_id is 'Id of what was changed; of a membership, that of its user.';
comment on column api.audit_log.changed_columns is 'Names of what is in before and after, also of what is erased by now.';
comment on column api.audit_log.before is 'What it was: the columns that changed. Null when it is new, or erased.';
comment on column api.audit_log.after is 'What it is: the columns that changed. Null when it is gone, or erased.';
comment on column api.audit_log.hash is 'SHA-256 over the entry and the hash of the one before, in hex.';

grant select on api.audit_log to member, platform_admin;
