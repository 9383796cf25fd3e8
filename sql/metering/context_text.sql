-- Where an event happened, as people say it: project Apollo in workspace Legal (client Acme). Inlined into the views that show it.
create or replace function metering.context_text(p_context jsonb)
returns text
language sql
immutable
parallel safe
as $$
  select coalesce(
    (p_context ->> 'type')
      || coalesce(' ' || (p_context ->> (p_context ->> 'type')), '')
      || case when p_context ->> 'type' <> 'workspace' then coalesce(' in workspace ' || (p_context ->> 'workspace'), '') else '' end
      || case
        when jsonb_typeof(p_context) <> 'object' then ''
        when p_context - array['type', 'workspace', p_context ->> 'type'] <> '{}'
          then metering.names_text(p_context - array['type', 'workspace', p_context ->> 'type'])
        else ''
      end,
    'other'
  )
$$;

-- The names that are the sender's own. Apart, since a function with a subquery is not inlined, and few events have any.
create or replace function metering.names_text(p_names jsonb)
returns text
language sql
immutable
parallel safe
set search_path = ''
as $$
  select ' (' || coalesce(string_agg(n.name || ' ' || n.value, ', ' order by n.name), '') || ')'
  from jsonb_each_text(p_names) as n (name, value)
$$;

grant execute on function metering.context_text(jsonb), metering.names_text(jsonb) to member, platform_admin;
