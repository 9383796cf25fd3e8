-- What a release of policies knows of itself: who ran it, from which revision of the files, and whether it went back to an earlier one.
-- The settings are written by the loader for its transaction, so that it inserts the same row at every migration.
set local role goldleaves_owner;

-- The defaults come after the columns: ADD COLUMN with one would sign what was released before, too.
alter table ops.releases
  add column git_revision text,
  add column operator text,
  add column restores bigint references ops.releases (id) on delete restrict;
alter table ops.releases
  alter column git_revision set default nullif(current_setting('goldleaves.git_revision', true), ''),
  alter column operator set default nullif(current_setting('goldleaves.operator', true), ''),
  alter column restores set default nullif(current_setting('goldleaves.restores', true), '')::bigint;

alter table ops.policy_releases
  add column git_revision text,
  add column operator text;
alter table ops.policy_releases
  alter column git_revision set default nullif(current_setting('goldleaves.git_revision', true), ''),
  alter column operator set default nullif(current_setting('goldleaves.operator', true), '');

create index releases_restored on ops.releases (restores);

-- How everything else looked when it was last released or migrated: functions, views, triggers, schemas, and tables without a policy
-- file. What looks different now was changed by hand.
create table ops.released_objects (
  name text primary key,
  live jsonb not null
);

reset role;
