-- What the operations of a project tool weigh, until the provider sets other weights: reading and small changes 1, what moves files or whole
-- containers 2 or 3, bulk work and models more.
set local role goldleaves_owner;

-- Row security holds for the owner too, once the policies are there.
alter table metering.operation_weights no force row level security;

insert into metering.operation_weights (operation, effective_from, weight)
select w.operation, timestamptz '2000-01-01 00:00+00', w.weight
from (
  values
    ('task_create', 1), ('task_update', 1), ('task_delete', 1), ('task_move', 1), ('task_assign', 1), ('task_complete', 1),
    ('task_duplicate', 2), ('task_bulk_update', 5),
    ('subtask_create', 1), ('subtask_update', 1), ('subtask_delete', 1),
    ('checklist_create', 1), ('checklist_update', 1), ('checklist_delete', 1),
    ('comment_create', 1), ('comment_update', 1), ('comment_delete', 1), ('reaction_add', 1), ('mention_send', 1),
    ('attachment_upload', 2), ('attachment_download', 1), ('attachment_preview', 2), ('attachment_delete', 1),
    ('space_create', 2), ('space_update', 1), ('space_delete', 2), ('space_archive', 2),
    ('project_create', 2), ('project_update', 1), ('project_delete', 2), ('project_archive', 2), ('project_duplicate', 5),
    ('folder_create', 1), ('folder_update', 1), ('folder_delete', 2),
    ('board_create', 2), ('board_update', 1), ('board_delete', 2),
    ('list_create', 1), ('list_update', 1), ('list_delete', 2),
    ('milestone_create', 1), ('milestone_update', 1), ('milestone_delete', 1),
    ('label_create', 1), ('label_update', 1), ('label_delete', 1),
    ('custom_field_create', 1), ('custom_field_update', 1), ('custom_field_delete', 1),
    ('time_entry_create', 1), ('time_entry_update', 1), ('time_entry_delete', 1),
    ('page_create', 1), ('page_update', 1), ('page_delete', 1), ('page_restore', 2),
    ('form_create', 2), ('form_submit', 1), ('template_create', 2), ('template_apply', 3),
    ('automation_create', 2), ('automation_run', 3), ('webhook_deliver', 1), ('integration_sync', 3),
    ('search_query', 2), ('dashboard_create', 2), ('dashboard_view', 1), ('report_generate', 5), ('data_import', 5), ('data_export', 5),
    ('member_invite', 1), ('member_remove', 1), ('notification_send', 1), ('email_send', 1),
    ('ai_embedding', 5), ('ai_search', 5), ('ai_classification', 5), ('ai_completion', 10), ('ai_summary', 10), ('ai_translation', 10),
    ('ai_transcription', 15), ('ai_image', 20)
) as w (operation, weight)
on conflict do nothing;

alter table metering.operation_weights force row level security;

reset role;
