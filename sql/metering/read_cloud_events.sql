-- CloudEvents 1.0 (JSON format) as events of ours: `type` is the name of the event, `subject` the organization that is billed, by id or
-- slug, and `data` has what else an event of ours says. What nobody asks for in `data`, and extension attributes, are dimensions.
-- Source: github.com/cloudevents/spec, v1.0.2.

-- p_events: whatever came; an event of a request that is none of CloudEvents stays as it is. Beside the members of ours, what is
-- returned has `source`, and `problem` where it is no CloudEvent that can be taken.
create or replace function metering.read_cloud_events(p_events jsonb, p_requests integer[], p_are_cloud_events boolean[])
returns jsonb
language sql
stable
set search_path = ''
as $$
  with raw as materialized (
    select
      e.number,
      e.event,
      p_are_cloud_events[case when p_requests is null then 1 else p_requests[e.number] end] and jsonb_typeof(e.event) = 'object' as is_one,
      case when jsonb_typeof(e.event -> 'subject') = 'string' then e.event ->> 'subject' end as subject,
      case when jsonb_typeof(e.event -> 'data') = 'object' then e.event -> 'data' else '{}' end as data
    from jsonb_array_elements(p_events) with ordinality as e (event, number)
  ),
  organizations as materialized (
    select o.slug, o.id
    from tenancy.organizations o
    where o.slug in (select r.subject from raw r where r.is_one and not tenancy.is_uuid(r.subject))
  )
  select jsonb_agg(
    case
      when r.is_one then jsonb_build_object(
        'id', r.event -> 'id',
        'event', r.event -> 'type',
        'time', r.event -> 'time',
        'source', r.event -> 'source',
        'organization_id', coalesce(o.id::text, r.subject),
        'quantity', coalesce(r.data -> 'quantity', '1'),
        'unit', r.data -> 'unit',
        'user_id', r.data -> 'user_id',
        'workspace_id', r.data -> 'workspace_id',
        'resource_id', r.data -> 'resource_id',
        'request_id', r.data -> 'request_id',
        'context', r.data -> 'context',
        'late', r.data -> 'late',
        'dimensions', case
          when coalesce(jsonb_typeof(r.data -> 'dimensions'), 'null') in ('object', 'null') then
            r.event - '{specversion,id,source,type,subject,time,datacontenttype,dataschema,data,data_base64}'::text[]
              || r.data - '{quantity,unit,user_id,workspace_id,resource_id,request_id,context,late,dimensions}'::text[]
              || coalesce(nullif(r.data -> 'dimensions', 'null'), '{}')
          else r.data -> 'dimensions'
        end,
        'problem', case
          when r.event -> 'specversion' is distinct from '"1.0"' then 'specversion needs to be "1.0"'
          when coalesce(jsonb_typeof(r.event -> 'source'), '') <> 'string' or length(r.event ->> 'source') not between 1 and 256
            then 'source needs a string of 1 to 256 characters'
          when r.event ->> 'source' in ('gateway', 'trigger', 'void') then 'source: gateway, trigger and void are reserved'
          when coalesce(jsonb_typeof(r.event -> 'subject'), 'null') not in ('string', 'null')
            then 'subject needs a string: the id or the slug of the organization that is billed'
          when r.event ? 'data_base64' then 'data_base64 is not read: send data as JSON'
          when coalesce(jsonb_typeof(r.event -> 'data'), 'null') not in ('object', 'null') then 'data needs an object'
        end
      )
      else r.event
    end
    order by r.number
  )
  from raw r
  left join organizations o on o.slug = r.subject
$$;

grant execute on function metering.read_cloud_events(jsonb, integer[], boolean[]) to goldleaves_kernel;
