-- Why some keys of tables with rows of tenants do not start with the organization, where `goldleaves policies lint` reads it. Comments
-- stay with what they are about: whoever drops a key drops its excuse.
set local role goldleaves_owner;

comment on constraint organizations_pkey on tenancy.organizations is
  'goldleaves lint key_without_organization: the tenant itself';
comment on index tenancy.organizations_slug_key is
  'goldleaves lint key_without_organization: slugs are public names, and create_organization says SLUG_TAKEN';
comment on constraint rejected_events_pkey on metering.rejected_events is
  'goldleaves lint key_without_organization: an event may name no organization, and the kernel makes the key';
comment on constraint api_keys_pkey on tenancy.api_keys is
  'goldleaves lint key_without_organization: keys of the provider may be for all organizations, and the kernel makes it';
comment on constraint api_keys_prefix_key on tenancy.api_keys is
  'goldleaves lint key_without_organization: random, and written by the kernel only';

comment on constraint organizations_owner_user_id_fkey on tenancy.organizations is
  'goldleaves lint reference_without_organization: people belong to several organizations, and the kernel writes it';
comment on constraint organizations_billing_user_id_fkey on tenancy.organizations is
  'goldleaves lint reference_without_organization: people belong to several organizations, and the kernel writes it';
comment on constraint memberships_user_id_fkey on tenancy.memberships is
  'goldleaves lint reference_without_organization: people belong to several organizations';
comment on constraint invitations_invited_by_fkey on tenancy.invitations is
  'goldleaves lint reference_without_organization: people belong to several organizations, and the kernel writes it';
comment on constraint invitations_accepted_by_fkey on tenancy.invitations is
  'goldleaves lint reference_without_organization: people belong to several organizations, and the kernel writes it';
comment on constraint api_keys_created_by_fkey on tenancy.api_keys is
  'goldleaves lint reference_without_organization: people belong to several organizations, and the kernel writes it';
comment on constraint api_keys_rotated_from_fkey on tenancy.api_keys is
  'goldleaves lint reference_without_organization: keys of the provider may be for all organizations, and the kernel writes it';
comment on constraint report_marks_meter_code_fkey on stripe.report_marks is
  'goldleaves lint reference_without_organization: meters are the same for everybody';

comment on table metering.meters is
  'goldleaves lint shared_table_without_row_security: meters are the same for everybody, and no tenant writes them';

reset role;
