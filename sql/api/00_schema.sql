-- Schema api is all that PostgREST exposes. It holds views and thin functions only and is rebuilt as a whole.
comment on schema api is $$Goldleaves

Usage metering and billing, tenant by tenant. Send `Authorization: Bearer <JWT>`, and `X-Organization-ID` (id or slug) to choose
one of your organizations. Errors are `{"code", "message", "details", "hint"}`, and message starts with a stable code.$$;

grant usage on schema api to anon, member, service, platform_admin;
