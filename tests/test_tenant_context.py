"""Who asks, and for which organization: how a request chooses it, what it is told when it cannot, and that the choice
ends with its transaction. Over real HTTP, through the gateway and at PostgREST itself.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.sql_requests import Caller, enter

Answer = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def home(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return insert_case(stack, make_organization(stack.database, "home"))


@pytest.fixture(scope="module")
def second(stack: RunningStack, home: Organization) -> Organization:
    """Another organization of home's owner, which is not their default."""
    return insert_case(stack, found(stack, "second", home["owner"].id))


@pytest.fixture(scope="module")
def foreign(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return insert_case(stack, make_organization(stack.database, "foreign"))


def found(stack: RunningStack, slug: str, owner: UUID) -> Organization:
    with stack.database.connect() as superuser:
        row = superuser.execute(
            "insert into tenancy.organizations (name, slug, owner_user_id) values (%s, %s, %s) returning id",
            [slug, slug, owner],
        ).fetchone()
        assert row
        superuser.execute(
            "insert into tenancy.memberships (organization_id, user_id, role) values (%s, %s, 'owner')", [row[0], owner]
        )
    return Organization(row[0], slug, {})


def insert_case(stack: RunningStack, organization: Organization) -> Organization:
    with stack.database.connect() as superuser:
        superuser.execute(
            "insert into app.cases (organization_id, title) values (%s, %s)", [organization.id, organization.slug]
        )
    return organization


@pytest.fixture(params=["postgrest", "gateway"])
def ask(request: pytest.FixtureRequest, stack: RunningStack) -> Iterator[Answer]:
    """`ask("GET", "/cases", "subject", org="slug", org_id=…)` sends one request."""
    base = stack.postgrest_url if request.param == "postgrest" else f"{stack.gateway_url}/api/v1"
    with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:

        def send(
            method: str, path: str, sub: str, *, org: object = None, json: object = None, **claims: object
        ) -> httpx.Response:
            headers = [(b"Authorization", f"Bearer {stack.token(sub, **claims)}".encode())]  # type: ignore[arg-type]
            if org is not None:
                headers.append((b"X-Organization-ID", org if isinstance(org, bytes) else str(org).encode()))
            return client.request(method, path, headers=headers, json=json)

        yield send


def titles(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["title"] for row in answer.json()]


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Status and stable code."""
    body: dict[str, Any] = answer.json()
    assert set(body) == {"code", "message", "details", "hint"}
    assert body["code"] == f"PT{answer.status_code}"
    return answer.status_code, body["message"].split(":")[0]


def test_default_organization(ask: Answer, home: Organization, second: Organization) -> None:
    assert titles(ask("GET", "/cases", home["owner"].subject)) == ["home"]


def test_header_takes_id_and_slug(ask: Answer, home: Organization, second: Organization) -> None:
    for name in (second.id, str(second.id).upper(), second.slug):
        assert titles(ask("GET", "/cases", home["owner"].subject, org=name)) == ["second"]


def test_claim_takes_id_and_slug(ask: Answer, home: Organization, second: Organization) -> None:
    for name in (second.id, second.slug):
        assert titles(ask("GET", "/cases", home["owner"].subject, org_id=str(name))) == ["second"]


def test_header_wins_over_claim_and_claim_over_default(ask: Answer, home: Organization, second: Organization) -> None:
    subject = home["owner"].subject
    assert titles(ask("GET", "/cases", subject, org=home.slug, org_id=str(second.id))) == ["home"]
    assert titles(ask("GET", "/cases", subject, org="", org_id=str(second.id))) == ["second"]
    assert titles(ask("GET", "/cases", subject, org="", org_id="")) == ["home"]


def test_a_wrong_header_does_not_fall_back_to_the_claim(ask: Answer, home: Organization, second: Organization) -> None:
    answer = ask("GET", "/cases", home["owner"].subject, org="nowhere", org_id=str(second.id))
    assert refusal(answer) == (403, "NOT_A_MEMBER")


def test_a_header_named_in_connection_does_not_vanish_on_its_way(
    stack: RunningStack, home: Organization, foreign: Organization
) -> None:
    """The gateway and PostgREST have to see the same header, or what one refuses the other serves, unmetered."""
    address = urlsplit(stack.gateway_url)
    for name in ("nowhere", foreign.slug):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        headers = {
            "Authorization": f"Bearer {stack.token(home['owner'].subject)}",
            "Connection": "X-Organization-ID",
            "X-Organization-ID": name,
        }
        connection.request("GET", "/api/v1/cases", headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        assert (answer.status, "NOT_A_MEMBER" in body) == (403, True), f"served {body} for {name}"


def test_unknown_and_foreign_organizations_get_the_same_answer(
    ask: Answer, home: Organization, foreign: Organization
) -> None:
    for real, unreal in ((str(foreign.id), str(uuid4())), (foreign.slug, "foreigm")):
        for how in ("org", "org_id"):
            for path in ("/cases", "/organizations", "/usage_events"):
                answers = [ask("GET", path, home["owner"].subject, **{how: name}) for name in (real, unreal)]
                assert refusal(answers[0]) == (403, "NOT_A_MEMBER")
                assert answers[0].text.replace(real, unreal) == answers[1].text


def test_organization_required(stack: RunningStack, ask: Answer, make_organization: MakeOrganization) -> None:
    """Somebody without a default still lists and founds organizations."""
    subject = f"nobody-{uuid4()}"
    with stack.database.connect() as superuser:
        row = superuser.execute("insert into tenancy.users (subject) values (%s) returning id", [subject]).fetchone()
        assert row
    elsewhere = found(stack, f"o-{uuid4().hex[:8]}", row[0])
    for path in ("/cases", "/documents", "/usage_events", "/billing_periods"):
        assert refusal(ask("GET", path, subject)) == (400, "ORGANIZATION_REQUIRED")
    assert refusal(ask("POST", "/rpc/usage_summary", subject, json={})) == (400, "ORGANIZATION_REQUIRED")

    assert [row["slug"] for row in ask("GET", "/organizations", subject).json()] == [elsewhere.slug]
    assert [row["organization_id"] for row in ask("GET", "/memberships", subject).json()] == [str(elsewhere.id)]
    assert ask("POST", "/rpc/sign_in", subject).status_code == 200
    slug = f"o-{uuid4().hex[:8]}"
    assert ask("POST", "/rpc/create_organization", subject, json={"name": "O", "slug": slug}).status_code == 200
    assert titles(ask("GET", "/cases", subject, org=slug)) == []


def test_lists_show_all_of_the_callers_organizations(ask: Answer, home: Organization, second: Organization) -> None:
    for org in (None, home.slug, second.slug):
        answer = ask("GET", "/organizations?select=slug&order=slug", home["owner"].subject, org=org)
        assert answer.json() == [{"slug": "home"}, {"slug": "second"}]


def test_postgrest_alone_does_not_make_users(stack: RunningStack) -> None:
    with httpx.Client(base_url=stack.postgrest_url, trust_env=False) as client:
        bearer = {"Authorization": f"Bearer {stack.token(f'new-{uuid4()}')}"}
        for path in ("/cases", "/organizations"):
            assert refusal(client.get(path, headers=bearer)) == (403, "USER_NOT_PROVISIONED")
        assert refusal(client.post("/rpc/usage_summary", json={}, headers=bearer)) == (403, "USER_NOT_PROVISIONED")


def test_sign_in_makes_a_user_with_a_personal_organization(ask: Answer) -> None:
    subject = f"new-{uuid4()}"
    answers = [ask("POST", "/rpc/sign_in", subject, email="Ada.Lovelace@example.com") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    me = answers[0].json()
    assert me == answers[1].json()
    assert me["email"] == "Ada.Lovelace@example.com"
    [organization] = me["organizations"]
    assert organization["id"] == me["default_organization_id"]
    assert organization["slug"].startswith("ada-lovelace")
    assert organization["role"] == "owner"
    assert titles(ask("GET", "/cases", subject)) == []


def test_the_gateway_makes_users_known_before_it_forwards(stack: RunningStack) -> None:
    with stack.client(f"new-{uuid4()}", email="grace@example.com") as client:
        [organization] = client.get("/api/v1/organizations").json()
    assert organization["kind"] == "personal"


def test_sixteen_first_requests_at_once_make_one_user(stack: RunningStack) -> None:
    subject, barrier = f"rush-{uuid4()}", Barrier(16)

    def first_request(number: int) -> int:
        with stack.client(subject, email="rush@example.com") as client:
            barrier.wait(10)
            if number % 2:
                return client.get("/api/v1/organizations").status_code
            bearer = {"Authorization": f"Bearer {stack.token(subject, email='rush@example.com')}"}
            return client.post(f"{stack.postgrest_url}/rpc/sign_in", headers=bearer).status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(first_request, range(16))) == {200}
    with stack.database.connect() as superuser:
        counts = superuser.execute(
            """
            select count(distinct u.id), count(distinct o.id), count(distinct m.organization_id)
            from tenancy.users u
            left join tenancy.organizations o on o.owner_user_id = u.id
            left join tenancy.memberships m on m.user_id = u.id
            where u.subject = %s
            """,
            [subject],
        ).fetchone()
    assert counts == (1, 1, 1)


@pytest.mark.parametrize(
    "email",
    [
        "550e8400-e29b-41d4-a716-446655440000@example.com",  # a personal slug must not look like an id
        " @example.com",
        "@example.com",
        "no-at-sign",
        "",
        "---@example.com",
        "å" * 300 + "@example.com",
        "Robert'); drop table tenancy.users; --@example.com",
    ],
)
def test_any_email_can_sign_in(ask: Answer, email: str) -> None:
    answer = ask("POST", "/rpc/sign_in", f"mail-{uuid4()}", email=email)
    assert answer.status_code == 200, answer.text
    assert answer.json()["organizations"][0]["role"] == "owner"


SUBJECTS = [
    "O'Brien",
    "auth0|65f",
    "'; drop table tenancy.users; --",
    "ünï ☃ 🍁",
    "%s %L $1 {}",
    "\\",
    '"',
    "0",
    "a" * 218,
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subjects_are_any_text(stack: RunningStack, ask: Answer, subject: str) -> None:
    unique = f"{subject}{uuid4()}"
    me = ask("POST", "/rpc/sign_in", unique).json()
    with stack.database.connect() as superuser:
        row = superuser.execute("select subject from tenancy.users where id = %s", [me["user_id"]]).fetchone()
    assert row == (unique,)
    assert titles(ask("GET", "/cases", unique)) == []


def test_a_subject_that_is_too_long_is_refused(ask: Answer) -> None:
    assert refusal(ask("POST", "/rpc/sign_in", "a" * 256)) == (401, "INVALID_TOKEN")


HOSTILE = [
    b"' or 1=1 --",
    b"00000000-0000-0000-0000-00000000000g",
    b"{00000000-0000-0000-0000-000000000000}",
    b"null",
    b"*",
    b"%00",
    b"\\",
    b"{}",
    "ünï☃".encode(),
    b"home\tsecond",
    b"HOME",
    b"a" * 6000,
    b"home,second",
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_organization_headers_name_nothing(ask: Answer, home: Organization, value: bytes) -> None:
    assert refusal(ask("GET", "/cases", home["owner"].subject, org=value)) == (403, "NOT_A_MEMBER")


def test_the_gateway_answers_bytes_that_are_no_text(stack: RunningStack, home: Organization) -> None:
    headers = {
        b"Authorization": f"Bearer {stack.token(home['owner'].subject)}".encode(),
        b"X-Organization-ID": b"\xff\xfe",
    }
    with httpx.Client(base_url=stack.gateway_url, trust_env=False) as client:
        assert refusal(client.get("/api/v1/cases", headers=headers)) == (403, "NOT_A_MEMBER")


def test_context_ends_with_its_transaction(stack: RunningStack, home: Organization) -> None:
    with stack.database.connect("authenticator") as connection:
        with connection.transaction():
            enter(connection, Caller("member", home["owner"].subject, path="/organizations"))
            settings = context_settings(connection)
            assert settings[:3] == (str(home.id), str(home["owner"].id), "owner")
            assert connection.execute("select title from api.cases").fetchall() == [("home",)]
        assert not any(context_settings(connection))
        with connection.transaction():
            enter(connection, Caller("member", home["owner"].subject, pre_request=False))
            assert not any(context_settings(connection))
            assert connection.execute("select title from api.cases").fetchall() == []
            assert connection.execute("select slug from api.organizations").fetchall() == []


def context_settings(connection: Any) -> tuple[str | None, ...]:
    row: tuple[str | None, ...] = connection.execute(
        """
        select current_setting('app.current_org', true), current_setting('app.current_user_id', true),
          current_setting('app.current_org_role', true), current_setting('app.my_organizations', true)
        """
    ).fetchone()
    return row


def test_each_request_replaces_all_that_was_left_on_the_connection(
    stack: RunningStack, home: Organization, foreign: Organization
) -> None:
    callers = (
        Caller("anon"),
        Caller("service", "s"),
        Caller("platform_admin", "p"),
        Caller("member", "x", path="/rpc/sign_in"),
    )
    with stack.database.connect("authenticator") as connection:
        for caller in callers:
            for name in ("current_org", "current_user_id"):
                connection.execute("select set_config(%s, %s, false)", [f"app.{name}", str(foreign.id)])
            connection.execute("select set_config('app.current_org_role', 'owner', false)")
            connection.execute("select set_config('app.my_organizations', %s, false)", [f"{{{foreign.id}}}"])
            with connection.transaction():
                enter(connection, caller)
                assert context_settings(connection) == ("", "", "", "{}"), caller


def test_people_on_the_same_pool_see_their_own(stack: RunningStack, home: Organization, foreign: Organization) -> None:
    def read(number: int) -> bool:
        organization = (home, foreign)[number % 2]
        headers = {"Authorization": f"Bearer {stack.token(organization['member'].subject)}"}
        return titles(pooled.get("/cases", headers=headers)) == [organization.slug]

    with (
        httpx.Client(base_url=stack.postgrest_url, timeout=30, trust_env=False) as pooled,
        ThreadPoolExecutor(8) as pool,
    ):
        assert all(pool.map(read, range(80)))


def test_a_removed_member_is_out_with_the_next_request(
    stack: RunningStack, ask: Answer, make_organization: MakeOrganization
) -> None:
    organization = make_organization(stack.database)
    member = organization["member"]
    for org in (None, organization.id, organization.slug):
        assert ask("GET", "/cases", member.subject, org=org).status_code == 200
    with stack.database.connect() as superuser:
        superuser.execute("delete from tenancy.memberships where user_id = %s", [member.id])
    for org in (organization.id, organization.slug):
        assert refusal(ask("GET", "/cases", member.subject, org=org)) == (403, "NOT_A_MEMBER")
    assert refusal(ask("GET", "/cases", member.subject))[1] in ("NOT_A_MEMBER", "ORGANIZATION_REQUIRED")


def test_a_changed_role_counts_with_the_next_request(
    stack: RunningStack, ask: Answer, make_organization: MakeOrganization
) -> None:
    organization = make_organization(stack.database)
    member = organization["member"]
    assert ask("POST", "/cases", member.subject, json={"title": "x"}).status_code == 201
    with stack.database.connect() as superuser:
        superuser.execute("update tenancy.memberships set role = 'viewer' where user_id = %s", [member.id])
    assert ask("POST", "/cases", member.subject, json={"title": "x"}).status_code == 403


def test_staff_and_service_name_organizations_that_exist(ask: Answer, home: Organization) -> None:
    answer = ask("GET", "/cases?title=eq.home", "staff", role="platform_admin", org=home.slug)
    assert titles(answer) == ["home"]
    for role in ("platform_admin", "service"):
        answer = ask("GET", "/cases", "staff", role=role, org="nowhere")
        assert refusal(answer) == (404, "ORGANIZATION_NOT_FOUND")


def test_create_organization(ask: Answer, home: Organization) -> None:
    slug = f"o-{uuid4().hex[:8]}"
    body = {"name": "  Firm  ", "slug": slug, "timezone": "America/Los_Angeles"}
    answer = ask("POST", "/rpc/create_organization", home["viewer"].subject, json=body)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["name"], made["slug"], made["billing_timezone"]) == ("Firm", slug, "America/Los_Angeles")
    [membership] = ask("GET", f"/memberships?organization_id=eq.{made['id']}", home["viewer"].subject, org=slug).json()
    assert (membership["user_id"], membership["role"]) == (str(home["viewer"].id), "owner")


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"name": ""}, (400, "INVALID_NAME")),
        ({"name": "   "}, (400, "INVALID_NAME")),
        ({"name": None}, (400, "INVALID_NAME")),
        ({"name": "x" * 201}, (400, "INVALID_NAME")),
        ({"slug": ""}, (400, "INVALID_SLUG")),
        ({"slug": None}, (400, "INVALID_SLUG")),
        ({"slug": "Upper"}, (400, "INVALID_SLUG")),
        ({"slug": "-a"}, (400, "INVALID_SLUG")),
        ({"slug": "a-"}, (400, "INVALID_SLUG")),
        ({"slug": "a b"}, (400, "INVALID_SLUG")),
        ({"slug": "a\n"}, (400, "INVALID_SLUG")),
        ({"slug": "ü"}, (400, "INVALID_SLUG")),
        ({"slug": "a" * 64}, (400, "INVALID_SLUG")),
        ({"slug": "550e8400-e29b-41d4-a716-446655440000"}, (400, "INVALID_SLUG")),
        ({"slug": "550E8400-E29B-41D4-A716-446655440000"}, (400, "INVALID_SLUG")),
        ({"timezone": "Mars/Olympus"}, (400, "INVALID_TIMEZONE")),
        ({"timezone": ""}, (400, "INVALID_TIMEZONE")),
        ({"timezone": None}, (400, "INVALID_TIMEZONE")),
        ({"timezone": "UTC'; --"}, (400, "INVALID_TIMEZONE")),
        ({"slug": "foreign"}, (409, "SLUG_TAKEN")),
        ({"slug": "home"}, (409, "SLUG_TAKEN")),
    ],
)
def test_create_organization_refuses(
    ask: Answer, home: Organization, foreign: Organization, details: dict[str, object], expected: tuple[int, str]
) -> None:
    body = {"name": "Firm", "slug": f"o-{uuid4().hex[:8]}", "timezone": "UTC", **details}
    assert refusal(ask("POST", "/rpc/create_organization", home["owner"].subject, json=body)) == expected


def test_only_people_found_organizations(ask: Answer) -> None:
    for role in ("service", "platform_admin"):
        for function, body in (("create_organization", {"name": "x", "slug": "x"}), ("sign_in", {})):
            answer = ask("POST", f"/rpc/{function}", "backend", role=role, json=body)
            assert refusal(answer) == (403, "ROLE_REQUIRED")
