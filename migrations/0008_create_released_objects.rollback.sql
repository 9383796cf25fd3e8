drop table ops.released_objects;
alter table ops.policy_releases drop column git_revision, drop column operator;
alter table ops.releases drop column git_revision, drop column operator, drop column restores;
