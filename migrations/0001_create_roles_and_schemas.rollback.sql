-- The roles stay: other databases of the cluster may use them. No CASCADE: what an adopter put beside our tables stops this.
drop table ops.policy_releases;
drop table ops.releases;
drop function ops.new_id();
drop function tenancy.my_organizations();
drop function tenancy.current_role_in(text[]);
drop function tenancy.current_user_id();
drop function tenancy.current_org();
drop schema ops;
drop schema stripe;
drop schema billing;
drop schema metering;
drop schema app;
drop schema tenancy;
revoke select on yoyo._yoyo_migration from goldleaves_kernel;
revoke usage on schema yoyo from goldleaves_kernel;
alter default privileges grant execute on functions to public;
alter default privileges for role goldleaves_owner grant execute on functions to public;
alter default privileges for role goldleaves_kernel grant execute on functions to public;
