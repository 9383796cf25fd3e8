-- Try statements as somebody, each by itself. All of it is undone before this returns, the role and the settings as well: variables
-- outlive the block that is rolled back. Answers, for each, with rows touched, error code, message, and whether a function raised it.
create function {schema}.attempt(p_role text, p_settings jsonb, p_pre_request boolean, p_statements text[])
returns jsonb
language plpgsql
volatile
as $$
declare
  v_results jsonb[] := '{{}}';
  v_refused text;
  v_statement text;
  v_rows bigint;
  v_code text;
  v_message text;
  v_context text;
begin
  begin
    perform set_config(s.key, s.value, true) from jsonb_each_text(p_settings) s;
    perform set_config('role', p_role, true);
    if p_pre_request then
      begin
        perform tenancy.pre_request();
      exception when others then
        v_refused := sqlerrm;
      end;
    end if;

    foreach v_statement in array p_statements loop
      begin
        execute v_statement;
        get diagnostics v_rows = row_count;
        raise exception using errcode = 'GL000';
      exception
        when sqlstate 'GL000' then
          v_results := v_results || jsonb_build_array(v_rows, null, null, false);
        when others then
          get stacked diagnostics v_code = returned_sqlstate, v_message = message_text, v_context = pg_exception_context;
          -- The last line is this function's own.
          v_results := v_results || jsonb_build_array(
            0, v_code, v_message, regexp_replace(v_context, '(^|\n)[^\n]*$', '') ~ '(^|\n)PL/\w+ function '
          );
      end;
    end loop;
    raise exception using errcode = 'GL000';
  exception when sqlstate 'GL000' then
    null;
  end;
  return jsonb_build_object('refused', v_refused, 'results', to_jsonb(v_results));
end;
$$
