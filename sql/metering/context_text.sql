-- Where an event happened, as people say it: project Apollo in workspace Legal. Inlined into the views that show it.
create or replace function metering.context_text(p_context jsonb)
returns text
language sql
immutable
parallel safe
as $$
  select coalesce(
    (p_context ->> 'type')
      || coalesce(' ' || (p_context ->> (p_context ->> 'type')), '')
      || case when p_context ->> 'type' <> 'workspace' then coalesce(' in workspace ' || (p_context ->> 'workspace'), '') else '' end,
    'other'
  )
$$;

grant execute on function metering.context_text(jsonb) to member, platform_admin;
