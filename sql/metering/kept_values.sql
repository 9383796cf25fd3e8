-- What groups call the values of dimensions. Groups are keys of the rollups, and one that no index takes would hold up the rollups of
-- everybody. What is kept of a value is also kept of what is kept, so that it can be asked for by either.

-- Up to 200 bytes the value itself, and of a longer one its beginning and a hash.
create or replace function metering.kept_value(p_value text)
returns text
language sql
immutable
parallel safe
set search_path = ''
as $$ select case when octet_length(p_value) > 200 then left(p_value, 40) || '…' || metering.value_hash(p_value) else p_value end $$;

-- A group with its values as they are kept. Mostly there is nothing to do, and this is asked for each event.
create or replace function metering.kept_groups(p_groups jsonb)
returns jsonb
language plpgsql
stable
parallel safe
set search_path = ''
as $$
begin
  if pg_column_size(p_groups) > 200 then
    return (select jsonb_object_agg(g.key, metering.kept_value(g.value)) from jsonb_each_text(p_groups) as g);
  end if;
  return p_groups;
end;
$$;

grant execute on function metering.kept_value(text), metering.kept_groups(jsonb) to goldleaves_kernel;
