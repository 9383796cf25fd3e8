drop table tenancy.api_keys;
drop table tenancy.workspaces;
drop table tenancy.invitations;
