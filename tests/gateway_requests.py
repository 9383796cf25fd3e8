"""Requests that the gateway has to answer as PostgREST does, a line each: how, what, and the status that both give.

The rows they speak of, and the functions, are those of SEED. Every id of a row is written out, so that two databases to
which the same was done are equal.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote

ORGANIZATION: Final = "0f000000-0000-4000-8000-000000000001"
PEOPLE: Final = ("owner", "member", "viewer", "billing")
ANN, BOB, ZOE = (f"c0000000-0000-4000-8000-00000000000{number}" for number in (1, 2, 3))
SMITH, JONES, DOE, UNICODE, QUOTED = (f"ca000000-0000-4000-8000-00000000000{number}" for number in (1, 2, 3, 4, 5))


def new(number: int) -> str:
    """The id of a row that a request makes."""
    return f"ee000000-0000-4000-8000-{number:012}"


NOBODY: Final = new(0)

SEED: Final = f"""
insert into tenancy.users (id, subject, email)
select ('0e000000-0000-4000-8000-00000000000' || number)::uuid, 'firm|' || role, role || '@firm.example'
from unnest('{{{",".join(PEOPLE)}}}'::text[]) with ordinality as people (role, number);

insert into tenancy.organizations (id, kind, name, slug, owner_user_id, created_at)
select '{ORGANIZATION}', 'organization', 'Firm', 'firm', id, '2026-01-01Z' from tenancy.users
where subject = 'firm|owner';

insert into tenancy.memberships (organization_id, user_id, role, created_at)
select '{ORGANIZATION}', id, split_part(subject, '|', 2), '2026-01-01Z' from tenancy.users;

update tenancy.users set default_organization_id = '{ORGANIZATION}';

insert into app.clients (organization_id, id, name, email, created_at) values
  ('{ORGANIZATION}', '{ANN}', 'Ann', 'ann@example.com', '2026-01-01Z'),
  ('{ORGANIZATION}', '{BOB}', 'Bob & Co.', null, '2026-01-02Z'),
  ('{ORGANIZATION}', '{ZOE}', 'Zoë', 'zoe@example.com', '2026-01-03Z');

insert into app.cases (organization_id, id, client_id, title, status, created_at) values
  ('{ORGANIZATION}', '{SMITH}', '{ANN}', 'Smith v. Jones', 'open', '2026-01-01Z'),
  ('{ORGANIZATION}', '{JONES}', '{ANN}', 'Jones, 100%', 'closed', '2026-01-02Z'),
  ('{ORGANIZATION}', '{DOE}', '{BOB}', 'in re Doe', 'open', '2026-01-03T04:05:06.789Z'),
  ('{ORGANIZATION}', '{UNICODE}', '{ZOE}', 'Ünïcode/日本 🦊 e\u0301', 'open', '2026-01-04Z'),
  ('{ORGANIZATION}', '{QUOTED}', null, 'a "quoted", (bracketed) \\ one', 'closed', '2026-01-05Z');

create function api.add(a integer, b integer default 10) returns integer language sql immutable
  as 'select a + b';
create function api.total(numbers integer[]) returns bigint language sql immutable
  as 'select sum(n) from unnest(numbers) n';
create function api.join_all(variadic words text[]) returns text language sql immutable
  as $$ select array_to_string(words, '-') $$;
create function api.echo_json(jsonb) returns jsonb language sql immutable as 'select $1';
create function api.echo_text(text) returns text language sql immutable as 'select $1';
create function api.cases_like(pattern text) returns setof api.cases language sql stable
  as 'select * from api.cases where title ilike pattern order by id';
create function api.headers() returns text language sql volatile as $$
  select set_config('response.headers', '[{{"Cache-Control": "private, max-age=60"}}, {{"Set-Cookie": "a=1"}},
    {{"Set-Cookie": "b=2"}}, {{"X-Empty": ""}}, {{"Link": "</cases>; rel=\\"next\\""}}]', true) $$;
create function api.status(code text) returns text language sql stable
  as $$ select set_config('response.status', code, true) $$;
create function api.fail(state text) returns void language plpgsql stable as $$ begin
  raise exception using errcode = state, message = 'Nein, ü', detail = 'because', hint = 'do not'; end $$;
create function api.write_nothing() returns void language sql volatile as 'select 1 where false';
create function api.large(megabytes integer) returns text language sql immutable
  as $$ select repeat('0123456789abcdef', megabytes * 65536) $$;
create domain api."text/html" as text;
create function api.page() returns api."text/html" language sql immutable as $$ select '<p>ü</p>' $$;
create domain api."application/octet-stream" as bytea;
create function api.octets() returns api."application/octet-stream" language sql immutable
  as $$ select '\\x00ff0d0a00'::bytea $$;
grant execute on all functions in schema api to member;
"""


@dataclass(frozen=True)
class Ask:
    method: str
    target: str
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    chunked: bool = False
    who: str = "owner"

    def __str__(self) -> str:
        said = [f"{name}: {value}" for name, value in self.headers if name != "Content-Type"]
        return " ".join([self.method, self.target[:70], *said])[:150]


def _ask(method: str, target: str, status: int, body: object = None, who: str = "owner", **headers: str) -> Ask:
    """`body` text or bytes as they are, else as JSON. Headers by their names, `content_type="text/csv"`."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    if body is None:
        return Ask(method, target, status, tuple(named.items()), who=who)
    named.setdefault("Content-Type", "application/json")
    data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    return Ask(method, target, status, tuple(named.items()), data, who=who)


def get(target: str, status: int, who: str = "owner", **headers: str) -> Ask:
    return _ask("GET", target, status, who=who, **headers)


def head(target: str, status: int, **headers: str) -> Ask:
    return _ask("HEAD", target, status, **headers)


def post(target: str, status: int, body: object = None, who: str = "owner", **headers: str) -> Ask:
    return _ask("POST", target, status, body, who, **headers)


def put(target: str, status: int, body: object = None, **headers: str) -> Ask:
    return _ask("PUT", target, status, body, **headers)


def patch(target: str, status: int, body: object = None, who: str = "owner", **headers: str) -> Ask:
    return _ask("PATCH", target, status, body, who, **headers)


def delete(target: str, status: int, who: str = "owner", **headers: str) -> Ask:
    return _ask("DELETE", target, status, who=who, **headers)


def chunked(ask: Ask) -> Ask:
    return replace(ask, chunked=True)


def twice(ask: Ask, name: str, *values: str) -> Ask:
    """A header that comes several times."""
    return replace(ask, headers=(*ask.headers, *((name, value) for value in values)))


OBJECT = "application/vnd.pgrst.object+json"
STRIPPED = "application/vnd.pgrst.array+json;nulls=stripped"
SHOW = "return=representation"
MERGE = f"resolution=merge-duplicates,{SHOW}"
IGNORE = f"resolution=ignore-duplicates,{SHOW}"
# What is compared has no created_at of a new row in it, nor has what is asked for.
ROW = "select=id,name,email"

FILTERS: list[Ask] = [
    get(f"/cases?id=eq.{SMITH}", 200),
    get("/cases?status=neq.open&order=id", 200),
    get("/cases?created_at=gt.2026-01-02&order=id", 200),
    get("/cases?created_at=gte.2026-01-02T00:00:00Z&order=id", 200),
    get("/cases?created_at=lt.2026-01-02T00:00:00%2B00:00&order=id", 200),
    get("/cases?created_at=lte.2026-01-03&order=id", 200),
    get("/cases?title=like.*Jones*&order=id", 200),
    get("/cases?title=ilike.*JONES*&order=id", 200),
    get("/cases?title=like(any).{*Doe,Smith*}&order=id", 200),
    get("/cases?title=ilike(all).{*o*,*e*}&order=id", 200),
    get("/cases?title=match.^[a-z]&order=id", 200),
    get("/cases?title=imatch.^J.*%25$&order=id", 200),
    get("/cases?client_id=is.null", 200),
    get("/cases?client_id=not.is.null&order=id", 200),
    get("/cases?client_id=isdistinct." + ANN + "&order=id", 200),
    get("/cases?status=in.(open,closed)&order=id", 200),
    get('/cases?title=in.("Jones,%20100%25","in%20re%20Doe")&order=id', 200),
    get("/cases?title=in.()&order=id", 200),
    get("/cases?title=fts.smith", 200),
    get("/cases?title=plfts(english).smith%20jones", 200),
    get("/cases?title=phfts(english).smith", 200),
    get("/cases?title=wfts.smith%20or%20doe&order=id", 200),
    get("/cases?title=eq(any).{in re Doe,x}".replace(" ", "%20"), 200),
    get("/cases?or=(status.eq.closed,title.like.in*)&order=id", 200),
    get("/cases?and=(status.eq.open,or(title.like.S*,title.like.%C3%9C*))&order=id", 200),
    get("/cases?not.or=(status.eq.closed,title.like.in*)&order=id", 200),
    get("/cases?or=(client_id.is.null,and(status.eq.open,not.and(title.like.S*,id.not.is.null)))&order=id", 200),
    get("/cases?status=eq.open&status=neq.closed&order=id", 200),
    get("/cases?title=cs.{a}", 404),
    get("/cases?title=st.1", 400),
    get("/cases?id=eq.not-a-uuid", 400),
    get("/cases?nothing=eq.1", 400),
    get("/cases?title=nothing.1", 400),
    get("/cases?title=like(some).{a}", 400),
    get("/usage_events?metadata->>status_code=eq.999", 200),
    get("/usage_events?select=metadata->status_code,s:metadata->>user_agent&limit=0", 200),
]

SHAPES: list[Ask] = [
    get("/cases?select=id,title&order=title.desc", 200),
    get("/cases?select=number:id::text,what:title&order=id", 200),
    get("/cases?select=created_at::date&order=id", 200),
    get("/cases?select=*&order=status.asc,title.desc.nullslast", 200),
    get("/cases?select=id&order=client_id.asc.nullsfirst,id", 200),
    get("/cases?select=title,clients(name)&order=id", 200),
    get("/cases?select=title,client:clients(name,email)&order=id", 200),
    get("/cases?select=title,client:clients!inner(name)&order=id", 200),
    get("/cases?select=title,...clients(client:name)&order=id", 200),
    get("/clients?select=name,cases(title,status)&cases.order=title.desc&cases.limit=1&order=id", 200),
    get("/clients?select=name,cases!inner(title)&cases.status=eq.closed&order=id", 200),
    get("/clients?select=name,cases()&cases=is.null", 200),
    get("/clients?select=name,cases(title)&cases.or=(status.eq.open,title.like.J*)&order=id", 200),
    get("/cases?select=title,clients(name)&order=clients(name).desc,id", 200),
    get("/cases?select=title,nothing(name)", 400),
    get("/cases?select=nothing", 400),
    get("/cases?select=title,,id", 400),
    get("/cases?select=", 200),
    get("/cases?order=nothing", 400),
    get("/cases?order=id.sideways", 400),
    get("/clients?select=" + quote("name,fälle:cases(title)") + "&order=id", 200),
    get("/cases?select=count()", 400),
]

PAGES: list[Ask] = [
    get("/cases?order=id&limit=2", 200),
    get("/cases?order=id&limit=2&offset=1", 200),
    get("/cases?order=id&offset=99", 200),
    get("/cases?order=id&limit=0", 200),
    get("/cases?order=id&limit=-1", 416),
    get("/cases?limit=many", 200),
    get("/cases?order=id", 200, range="0-1"),
    get("/cases?order=id", 200, range="1-", range_unit="items"),
    get("/cases?order=id", 206, range="0-1", prefer="count=exact"),
    get("/cases?order=id", 206, range="4-9", prefer="count=exact"),
    get("/cases?order=id", 416, range="9-10", prefer="count=exact"),
    get("/cases?order=id", 416, range="3-2"),
    get("/cases?order=id&limit=1", 206, prefer="count=exact"),
    get("/cases?order=id", 200, prefer="count=exact"),
    get("/cases?status=eq.none", 200, prefer="count=exact"),
    get("/cases", 400, prefer="count=planned"),
    get("/cases", 400, prefer="count=estimated"),
    get("/cases?limit=1", 200, prefer="count=nonsense"),
    head("/cases", 200),
    head("/cases", 200, prefer="count=exact", range="0-1"),
    head("/cases?status=eq.open", 200, prefer="count=exact"),
    head("/rpc/cases_like?pattern=*o*", 200, prefer="count=exact"),
]

MEDIA: list[Ask] = [
    get("/cases?order=id", 200, accept="text/csv"),
    get("/cases?order=id&select=title,client_id", 200, accept="text/csv"),
    get(f"/cases?id=eq.{NOBODY}", 200, accept="text/csv"),
    get(f"/cases?id=eq.{SMITH}", 200, accept=OBJECT),
    get("/cases", 406, accept=OBJECT),
    get(f"/cases?id=eq.{NOBODY}", 406, accept=OBJECT),
    get(f"/cases?id=eq.{QUOTED}", 200, accept=STRIPPED),
    get(f"/cases?id=eq.{QUOTED}", 200, accept=f"{OBJECT};nulls=stripped"),
    get("/cases?order=id", 200, accept="text/csv;q=0.5, application/json;q=0.9"),
    get("/cases?order=id", 200, accept="*/*"),
    get("/cases?order=id", 200, accept="text/html, */*"),
    get("/cases", 415, accept="image/png"),
    get("/cases", 415, accept="application/vnd.pgrst.plan+json"),
    get("/cases?order=id&limit=1", 200, accept_encoding="gzip, br", accept_language="de", accept_charset="latin1"),
    get("/", 200, accept="application/openapi+json"),
    get("/", 415, accept="text/csv"),
    get("/rpc/page", 200, accept="text/html"),
    get("/rpc/octets", 200, accept="application/octet-stream"),
    get("/rpc/page", 200, accept="text/csv"),
]

SCHEMAS: list[Ask] = [
    get("/cases?order=id", 200, accept_profile="api"),
    get("/cases", 406, accept_profile="metering"),
    get("/usage_events", 406, accept_profile="public"),
    post("/cases", 406, {"title": "x"}, content_profile="tenancy"),
    _ask("OPTIONS", "/cases", 200),
    _ask("OPTIONS", "/usage_events", 200),
    _ask("OPTIONS", "/rpc/add", 404),
    _ask("OPTIONS", "/rpc/write_nothing", 200),
    _ask("OPTIONS", "/nothing", 404),
    _ask("OPTIONS", "/", 200),
]

INSERTS: list[Ask] = [
    post(f"/clients?{ROW}", 201, {"id": new(1), "name": "One"}, prefer=SHOW),
    post("/clients", 201, {"id": new(2), "name": "Two"}),
    post("/clients", 201, {"id": new(3), "name": "Three"}, prefer="return=minimal"),
    post("/clients", 201, {"id": new(4), "name": "Four"}, prefer="return=headers-only"),
    post(f"/clients?{ROW}", 201, [{"id": new(n), "name": f"N{n}"} for n in (5, 6)], prefer=f"{SHOW},count=exact"),
    post(f"/clients?{ROW}", 201, {"id": new(7), "name": "Seven"}, prefer=SHOW, accept=OBJECT),
    post(f"/clients?{ROW}", 406, [{"id": new(n), "name": "x"} for n in (8, 9)], prefer=SHOW, accept=OBJECT),
    post(
        f"/clients?{ROW}",
        201,
        f'id,name,email\n{new(10)},Zoë,NULL\n{new(11)},"a,b",\n',
        content_type="text/csv",
        prefer=SHOW,
        accept="text/csv",
    ),
    post("/clients", 400, "id,name\n1", content_type="text/csv"),
    post(
        f"/clients?{ROW}",
        201,
        f"id={new(12)}&name=Form+%26+Co",
        content_type="application/x-www-form-urlencoded",
        prefer=SHOW,
    ),
    post(f"/clients?columns=id,name&{ROW}", 201, [{"id": new(13), "name": "C", "nothing": 1}], prefer=SHOW),
    post(
        f"/clients?columns=id,name,email&{ROW}", 201, [{"id": new(14), "name": "D"}], prefer=f"missing=default,{SHOW}"
    ),
    post(f"/clients?columns=id,name,email&{ROW}", 201, [{"id": new(15), "name": "E"}], prefer=f"missing=null,{SHOW}"),
    post("/clients?columns=nothing", 400, [{"name": "x"}]),
    post("/clients", 400, [{"id": new(16), "name": "x"}, {"id": new(17)}]),
    post("/clients", 201, []),
    post(f"/clients?{ROW}", 201, [], prefer=SHOW),
    post("/clients", 400, ""),
    post("/clients", 400, "{"),
    post("/clients", 201, '"text"'),
    post("/clients", 400, {"nothing": 1}),
    post("/clients", 400, {"name": ""}),
    post("/clients", 400, {"id": "no uuid", "name": "x"}),
    post("/clients", 409, {"id": ANN, "name": "again"}),
    post("/cases", 409, {"title": "x", "client_id": NOBODY}),
    post("/clients", 400, "name: x", content_type="application/yaml"),
    post("/clients", 201, {"id": new(18), "name": "Eighteen"}, content_type="application/json; charset=utf-8"),
    post(f"/clients?{ROW}", 201, {"id": new(19), "name": "🦊 e\u0301 é ﷽ \u202e"}, prefer=SHOW),
    post(f"/clients?{ROW}", 201, f'{{"id": "{new(20)}", "name": "first", "name": "\\ud83e\\udd8a"}}', prefer=SHOW),
    post("/clients", 400, '{"name": "\\u0000"}'),
    post("/clients", 400, b'{"name": "\xff\xfe"}'),
    post("/clients", 400, gzip.compress(b'{"name": "x"}', mtime=0), content_encoding="gzip"),
    chunked(post(f"/clients?{ROW}", 201, {"id": new(21), "name": "Chunked"}, prefer=SHOW)),
    chunked(post("/clients", 400, "{")),
    post("/clients", 201, [{"id": new(1000 + n), "name": "n" * 200} for n in range(500)]),
    post("/clients?select=nothing", 400, {"name": "x"}, prefer=SHOW),
    post("/billing_periods", 403, {"status": "open"}),
    post("/memberships", 403, {"user_id": NOBODY, "role": "member"}, who="viewer"),
]

UPSERTS: list[Ask] = [
    post(f"/clients?{ROW}", 200, {"id": new(1), "name": "One again"}, prefer=MERGE),
    post(f"/clients?{ROW}", 201, [{"id": new(n), "name": f"U{n}"} for n in (2, 30)], prefer=MERGE),
    post(f"/clients?{ROW}", 201, [{"id": new(n), "name": "ignored"} for n in (1, 31)], prefer=IGNORE),
    post(f"/clients?on_conflict=organization_id,id&{ROW}", 200, {"id": new(1), "name": "Named"}, prefer=MERGE),
    post(f"/clients?on_conflict=id&{ROW}", 400, {"id": new(1), "name": "x"}, prefer=MERGE),
    post(f"/clients?on_conflict=name&{ROW}", 400, {"id": new(1), "name": "x"}, prefer=IGNORE),
    post("/clients", 403, {"id": new(1), "organization_id": NOBODY, "name": "x"}, prefer=MERGE),
    put(
        f"/clients?organization_id=eq.{ORGANIZATION}&id=eq.{new(32)}&{ROW}",
        201,
        {
            "organization_id": ORGANIZATION,
            "id": new(32),
            "name": "Put",
            "email": None,
            "created_by": None,
            "created_at": "2026-01-01",
        },
        prefer=SHOW,
    ),
    put(f"/clients?id=eq.{new(33)}", 405, {"id": new(33), "name": "x"}),
    put(f"/clients?organization_id=eq.{ORGANIZATION}&id=eq.{new(34)}", 400, {"id": new(35), "name": "x"}),
    put("/clients", 405, {"name": "x"}),
]

CHANGES: list[Ask] = [
    patch(f"/clients?id=eq.{new(1)}&{ROW}", 200, {"name": "Changed"}, prefer=SHOW),
    patch(f"/clients?id=eq.{new(1)}", 204, {"name": "Minimal"}),
    patch(f"/clients?id=eq.{new(1)}", 204, {"name": "Headers"}, prefer="return=headers-only,count=exact"),
    patch(f"/clients?id=eq.{NOBODY}&{ROW}", 200, {"name": "x"}, prefer=SHOW),
    patch(f"/clients?id=eq.{NOBODY}", 204, {"name": "x"}),
    patch(f"/clients?id=eq.{new(1)}&{ROW}", 200, {"name": "One row"}, prefer=SHOW, accept=OBJECT),
    patch(f"/clients?id=in.({new(2)},{new(3)})&{ROW}", 406, {"name": "x"}, prefer=SHOW, accept=OBJECT),
    patch(f"/clients?id=in.({new(2)},{new(3)})&{ROW}&order=id&limit=1", 200, {"email": "first"}, prefer=SHOW),
    patch(f"/clients?id=eq.{new(1)}&columns=name&{ROW}", 200, {"name": "Col", "nothing": 1}, prefer=SHOW),
    patch(f"/clients?id=eq.{new(1)}", 409, {"id": new(99)}),
    patch(f"/clients?id=eq.{new(1)}", 400, {"name": ""}),
    patch(f"/clients?id=eq.{new(1)}", 400, {"nothing": 1}),
    patch(f"/clients?id=eq.{new(1)}", 204, {}),
    patch(f"/clients?id=eq.{new(1)}", 400),
    patch(f"/clients?id=eq.{new(1)}", 403, {"organization_id": NOBODY}),
    patch(f"/clients?id=eq.{new(1)}", 204, {"name": "not theirs"}, who="viewer"),
    patch("/invoices", 403, {"total_cents": 0}),
    delete(f"/clients?id=eq.{new(2)}&{ROW}", 200, prefer=SHOW),
    delete(f"/clients?id=eq.{new(3)}", 204),
    delete(f"/clients?id=eq.{new(4)}", 204, prefer="count=exact"),
    delete(f"/clients?id=eq.{NOBODY}&{ROW}", 200, prefer=SHOW),
    delete(f"/clients?id=in.({new(5)},{new(6)})&{ROW}", 406, prefer=SHOW, accept=OBJECT),
    delete(f"/clients?id=eq.{new(7)}&{ROW}", 200, prefer=SHOW, accept=OBJECT),
    delete(f"/clients?id=eq.{new(10)}", 204, who="member"),
    delete("/usage_events", 403),
]

PREFERENCES: list[Ask] = [
    get("/cases?limit=1&order=id", 200, prefer="handling=strict"),
    get("/cases?limit=1", 400, prefer="handling=strict, anything=goes"),
    get("/cases?limit=1&order=id", 200, prefer="handling=lenient, anything=goes"),
    get("/cases?select=created_at&order=id&limit=1", 200, prefer="timezone=America/New_York"),
    get("/cases?select=created_at&order=id&limit=1", 200, prefer="timezone=Mars/Olympus"),
    get("/cases?limit=1", 400, prefer="handling=strict, timezone=Mars/Olympus"),
    post(f"/clients?{ROW}", 201, {"id": new(40), "name": "Kept"}, prefer=f"tx=rollback,{SHOW}"),
    get(f"/clients?id=eq.{new(40)}&{ROW}", 200),
    post(f"/clients?{ROW}", 201, {"id": new(41), "name": "Kept"}, prefer=f"tx=commit,{SHOW}"),
    patch(f"/clients?id=gte.{new(1000)}&id=lt.{new(1005)}", 204, {"email": "x"}, prefer="max-affected=2"),
    patch(
        f"/clients?id=gte.{new(1000)}&id=lt.{new(1005)}", 400, {"email": "y"}, prefer="handling=strict, max-affected=2"
    ),
    post("/rpc/total", 404, {"numbers": [1, 2]}, prefer="params=single-object"),
    twice(get("/cases?order=id", 200), "Prefer", "count=exact", "timezone=Asia/Tokyo"),
    twice(get("/cases", 400), "Prefer", "timezone=Asia/Tokyo", "count=planned"),
]

FUNCTIONS: list[Ask] = [
    get("/rpc/add?a=1&b=2", 200),
    get("/rpc/add?a=1", 200),
    get("/rpc/add?b=1", 404),
    get("/rpc/add?a=x", 400),
    post("/rpc/add", 200, {"a": 1, "b": 2}),
    post("/rpc/add", 200, "a=1&b=5", content_type="application/x-www-form-urlencoded"),
    post("/rpc/add", 404, {"a": 1, "c": 2}),
    post("/rpc/add", 404),
    get("/rpc/total?numbers={1,2,3}", 200),
    get("/rpc/total?numbers=%7B1,2,3%7D", 200),
    post("/rpc/total", 200, {"numbers": [1, 2, 3]}),
    get("/rpc/join_all?words=a&words=b&words=c%26d", 200),
    post("/rpc/join_all", 200, {"words": ["a", "b"]}),
    post("/rpc/echo_json", 200, {"deep": [{"ü": None}, 1.5, 1e300]}),
    post("/rpc/echo_json", 200, '{"big": 12345678901234567890.1234567890, "order": 1, "a": 2}'),
    post("/rpc/echo_text", 200, "Grüße\r\n", content_type="text/plain"),
    post("/rpc/echo_text", 415, "Grüße", content_type="text/plain", accept="text/plain"),
    get("/rpc/cases_like?pattern=*o*", 200),
    get("/rpc/cases_like?pattern=%25o%25&status=eq.open&select=title,status,clients(name)&order=title", 200),
    post("/rpc/cases_like?select=id&limit=1", 206, {"pattern": "%o%"}, prefer="count=exact"),
    post("/rpc/cases_like?select=id", 406, {"pattern": "%o%"}, accept=OBJECT),
    post("/rpc/cases_like?select=id,title&order=id", 200, {"pattern": "%o%"}, accept="text/csv"),
    post("/rpc/write_nothing", 204),
    get("/rpc/write_nothing", 204),
    get("/rpc/headers", 200),
    post("/rpc/headers", 200),
    get("/rpc/status?code=202", 202),
    get("/rpc/status?code=204", 204),
    get("/rpc/status?code=304", 304),
    get("/rpc/status?code=418", 418),
    get("/rpc/status?code=none", 500),
    *(
        get(f"/rpc/fail?state={state}", status)
        for state, status in (
            ("PT402", 402),
            ("PT404", 404),
            ("PT410", 410),
            ("PT429", 429),
            ("PT503", 503),
            ("P0001", 400),
            ("22012", 400),
            ("23505", 409),
            ("42501", 403),
            ("53100", 503),
            ("57014", 500),
            ("XX000", 500),
            ("0L000", 403),
        )
    ),
    get("/rpc/nothing", 404),
    get("/rpc/", 404),
    get("/rpc", 404),
    put("/rpc/add", 405, {"a": 1}),
    patch("/rpc/add", 405, {"a": 1}),
    delete("/rpc/add?a=1", 405),
    get("/rpc/health", 200),
    get("/rpc/finalize_period?period_start=2026-01-01", 403),
    post("/rpc/finalize_period", 403, {"period_start": "2026-01-01"}),
    post("/rpc/sign_in", 200, {}, who="member"),
]

REFUSALS: list[Ask] = [
    get("/cases", 401, who="nobody"),
    get("/rpc/health", 200, who="nobody"),
    get("/", 200, who="nobody"),
    get("/cases", 403, who="backend"),
    post("/rpc/sign_in", 403, {}, who="backend"),
    get("/invoices", 200, who="member"),
    post("/cases", 403, {"title": "x"}, who="viewer"),
    get("/nothing", 404),
    get("/cases/1", 404),
    get(f"/cases/{SMITH}", 404),
    _ask("TRACE", "/cases", 405),
    _ask("PROPFIND", "/cases", 405),
    post("/", 404, {}),
    delete("/", 404),
    get("/organizations?select=slug,name", 200, x_organization_id="firm"),
]

TARGETS: list[Ask] = [
    get("/c%61ses?order=id&limit=1", 200),
    get("/%63%61%73%65%73?limit=0", 200),
    get("/Cases?limit=1", 404),
    get("/cases%2F?limit=1", 404),
    get("/cases/?limit=0", 404),
    get("//cases?limit=0", 404),
    get("/../cases?limit=1", 404),
    get("/./cases?limit=1", 404),
    get("/cases;a=b?limit=1", 404),
    get("/cases%3Flimit=1", 404),
    get("/f%C3%A4lle", 404),
    get("/f%E4lle", 404),
    get("/cases%", 404),
    get("/cases%zz", 404),
    get("/cases?", 200),
    get("/cases??limit=1", 400),
    get("/cases?&&limit=0&", 200),
    get("/cases?limit=0&limit=1&order=id", 200),
    get("/cases?order=id&order=title", 200),
    get("/cases?select=id&select=title&order=id", 200),
    get("/cases?title=eq." + quote("Ünïcode/日本 🦊 e\u0301", safe=""), 200),
    get("/cases?title=eq." + quote("Ünïcode/日本 🦊 é", safe=""), 200),
    get("/cases?title=eq." + quote('a "quoted", (bracketed) \\ one', safe=""), 200),
    get("/cases?title=in.(" + quote('"a \\"quoted\\", (bracketed) \\\\ one"', safe="") + ")", 200),
    get("/cases?title=eq.Smith+v.+Jones", 200),
    get("/cases?title=eq.Smith%20v%2e%20Jones", 200),
    get("/cases?title=eq.Smith%2Bv.", 200),
    get("/cases?title=eq.Jones,%20100%", 200),
    get("/cases?title=eq.%00", 200),
    get("/cases?title=eq.a;limit=0", 200),
    get("/cases?t%69tle=eq.in%20re%20Doe", 200),
    get("/cases?" + quote("title") + "=eq.%22in%20re%20Doe%22", 200),
    get(f"/cases?order=id&id=in.({','.join([SMITH] * 220)})", 200),
    get(f"/cases?order=id&id=in.({','.join([SMITH] * 850)})", 200),
    get("/cases?title=eq." + "%C3%BC" * 2_600, 200),
    get("/cases?title=eq." + "x" * 32_000, 200),
]

EVERYTHING: list[Ask] = [
    *FILTERS, *SHAPES, *PAGES, *MEDIA, *SCHEMAS, *INSERTS, *UPSERTS, *CHANGES, *PREFERENCES, *FUNCTIONS, *REFUSALS,
    *TARGETS,
]  # fmt: skip
