-- The database, or a role that serves requests, has a setting that says whose requests these are, or how PostgREST serves them.
-- Why: it holds where nothing else was set. PostgREST reads those that begin with pgrst before its own configuration: other schemas are
-- exposed by them, another role is anybody's, or no request enters an organization any more.
-- Level: error
select
  case when d.oid is null then 'pg_authid'::regclass else 'pg_database'::regclass end as class, coalesce(d.oid, r.oid) as id,
  coalesce(r.name, 'database ' || quote_ident(d.datname)) as object,
  format('%s has %s', concat_ws(' in ', r.name, 'database ' || quote_ident(d.datname)), setting) as what,
  format('alter %s reset %s;', case when r.oid is null then 'database ' || quote_ident(d.datname)
    else concat('role ', r.name, ' in database ' || quote_ident(d.datname)) end, split_part(setting, '=', 1)) as mend
from pg_db_role_setting s
cross join lateral unnest(s.setconfig) as setting
left join request_roles r on r.oid = s.setrole and s.setrole <> 0
left join pg_database d on d.oid = s.setdatabase
where (s.setrole = 0 or r.oid is not null)
  and (s.setdatabase = 0 or d.datname = current_database())
  and split_part(setting, '=', 1) ~* ('^(app[.](current_|my_organizations|settings[.])|role$|session_replication_role$|row_security$'
    || '|pgrst[.](db_(schemas?|anon_role|pre_request|pre_config|extra_search_path|root_spec|tx_end|prepared_statements)|jwt_|server_))')
