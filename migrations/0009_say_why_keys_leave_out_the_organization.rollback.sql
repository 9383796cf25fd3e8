set local role goldleaves_owner;

comment on constraint organizations_pkey on tenancy.organizations is null;
comment on index tenancy.organizations_slug_key is null;
comment on constraint rejected_events_pkey on metering.rejected_events is null;
comment on constraint api_keys_pkey on tenancy.api_keys is null;
comment on constraint api_keys_prefix_key on tenancy.api_keys is null;
comment on constraint organizations_owner_user_id_fkey on tenancy.organizations is null;
comment on constraint organizations_billing_user_id_fkey on tenancy.organizations is null;
comment on constraint memberships_user_id_fkey on tenancy.memberships is null;
comment on constraint invitations_invited_by_fkey on tenancy.invitations is null;
comment on constraint invitations_accepted_by_fkey on tenancy.invitations is null;
comment on constraint api_keys_created_by_fkey on tenancy.api_keys is null;
comment on constraint api_keys_rotated_from_fkey on tenancy.api_keys is null;
comment on constraint report_marks_meter_code_fkey on stripe.report_marks is null;
comment on table metering.meters is null;

reset role;
