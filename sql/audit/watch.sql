-- Tables that are watched: each change of a row becomes an entry of the audit log. sql/audit/watched.sql lists them, and
-- adopted tables are watched as well.

-- Its argument is an object: target (what a row is called), key (columns that name it), organization (the column that says whose it
-- is; without one, or where platform is contained in the row, it is the platform's), personal (columns that stay outside the chain;
-- "*": all), hidden (columns whose values are never shown), quiet (columns whose change alone is worth no entry).
create or replace function audit.record_change()
returns trigger
language plpgsql
volatile
security definer
set search_path = ''
as $$
declare
  v_watch jsonb := tg_argv[0];
  v_personal text[] := array(select jsonb_array_elements_text(v_watch -> 'personal'));
  v_timezone text := current_setting('timezone');
  v_old jsonb;
  v_new jsonb;
  v_row jsonb;
  v_changed text[];
  v_hidden jsonb;
  v_shown text[];
  v_apart text[];
  v_organizations uuid[];
begin
  -- Times in the entry must not depend on who writes it.
  perform set_config('timezone', 'UTC', true);
  v_old := case when tg_op <> 'INSERT' then to_jsonb(old) end;
  v_new := case when tg_op <> 'DELETE' then to_jsonb(new) end;
  perform set_config('timezone', v_timezone, true);
  v_row := coalesce(v_new, v_old);

  v_changed := array(select k from jsonb_object_keys(v_row) k where v_old -> k is distinct from v_new -> k);
  if v_changed <@ array(select jsonb_array_elements_text(v_watch -> 'quiet')) then
    return null;
  end if;

  -- Of a hidden column, that it changed is told, and nothing else.
  select coalesce(jsonb_object_agg(k, 'hidden'), '{}') into v_hidden
  from jsonb_array_elements_text(v_watch -> 'hidden') k;
  v_old := v_old || v_hidden;
  v_new := v_new || v_hidden;

  v_shown := array(select c from unnest(v_changed) c where not v_personal && array[c, '*']);
  v_apart := array(select unnest(v_changed) except select unnest(v_shown));
  v_organizations := array(
    select distinct case when v_row @> (v_watch -> 'platform') then audit.platform() else o.id end
    from unnest(array[v_old ->> (v_watch ->> 'organization'), v_new ->> (v_watch ->> 'organization')]::uuid[]) o (id)
    where o.id is not null
  );
  if v_organizations = '{}' then
    v_organizations := array[audit.platform()];
  end if;

  perform audit.append(
    o.id,
    (v_watch ->> 'target') || case tg_op when 'INSERT' then '.created' when 'UPDATE' then '.changed' else '.removed' end,
    v_watch ->> 'target',
    (select string_agg(v_row ->> k.name, ',' order by k.position) from jsonb_array_elements_text(v_watch -> 'key') with ordinality k (name, position)),
    audit.only(v_old, v_shown),
    audit.only(v_new, v_shown),
    (
      select jsonb_object_agg(side.name, side.columns)
      from (values ('before', audit.only(v_old, v_apart)), ('after', audit.only(v_new, v_apart))) as side (name, columns)
      where side.columns is not null
    )
  )
  from unnest(v_organizations) o (id);
  return null;
end;
$$;

-- These columns of a row, or null where there are none.
create or replace function audit.only(p_row jsonb, p_columns text[])
returns jsonb
language sql
immutable
set search_path = ''
as $$ select jsonb_object_agg(c, p_row -> c) from unnest(p_columns) c where p_row is not null $$;

create or replace function audit.refuse_truncate()
returns trigger
language plpgsql
volatile
set search_path = ''
as $$
begin
  raise exception using
    errcode = 'PT409',
    message = format('AUDITED_TABLE: %I.%I is never truncated, its audit log would not tell', tg_table_schema, tg_table_name),
    hint = 'Delete the rows: each of them is then in the audit log.';
end;
$$;

-- Named so that they come after guards that refuse: triggers fire in the order of their names.
create or replace function audit.watch(
  p_table regclass,
  p_target_type text,
  p_key text[],
  p_organization text default 'organization_id',
  p_personal text[] default '{}',
  p_hidden text[] default '{}',
  p_quiet text[] default '{}',
  p_platform jsonb default null,
  p_events text default 'insert or update or delete'
)
returns void
language plpgsql
volatile
set search_path = ''
as $$
declare
  v_unknown text;
begin
  -- A column that is misspelt would be in the chain, and stay there.
  select string_agg(c.name, ', ') into v_unknown
  from unnest(p_key || p_organization || p_personal || p_hidden || p_quiet) c (name)
  where c.name <> '*'
    and not exists (
      select from pg_catalog.pg_attribute a
      where a.attrelid = p_table and a.attname = c.name and a.attnum > 0 and not a.attisdropped
    );
  if v_unknown is not null then
    raise exception using
      errcode = 'undefined_column',
      message = format('%s cannot be watched: it has no column %s', p_table, v_unknown);
  end if;

  execute format(
    'create or replace trigger watch after %s on %s for each row execute function audit.record_change(%L)',
    p_events, p_table,
    jsonb_strip_nulls(jsonb_build_object(
      'target', p_target_type, 'key', p_key, 'organization', p_organization, 'personal', p_personal, 'hidden', p_hidden,
      'quiet', p_quiet, 'platform', p_platform
    ))
  );
  execute format(
    'create or replace trigger watch_truncate before truncate on %s for each statement execute function audit.refuse_truncate()',
    p_table
  );
end;
$$;

alter function audit.record_change() owner to goldleaves_kernel;
grant execute on function audit.only(jsonb, text[]) to goldleaves_kernel;
