drop table tenancy.memberships;
alter table tenancy.organizations drop constraint organizations_owner_user_id_fkey,
  drop constraint organizations_billing_user_id_fkey;
drop table tenancy.users;
drop table tenancy.organizations;
