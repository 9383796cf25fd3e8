select
  current_database()::text as database,
  coalesce(host(inet_server_addr()) || ':' || inet_server_port(), 'a local socket') as host,
  current_setting('server_version') as version,
  session_user::text as connected_as,
  r.id as release,
  to_char(r.released_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') as released_at,
  r.fingerprint,
  r.git_revision
from (select 1) as one
left join lateral (select * from ops.releases order by id desc limit 1) as r on true
