"""A personal organization becomes an organization, once, by its owner: the same one with all that is in it, or,
whatever goes wrong at whatever step, not a trace of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg import IsolationLevel, sql

from api.settings import PROJECT
from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization, RunningStack
from tests.observe import assert_problem, await_block, eventually
from tests.sql_requests import Caller, Connection, enter, request, run
from tests.usage import race, value

CONVERT = "select * from api.convert_to_organization(%(name)s, %(slug)s)"
SOURCE = PROJECT / "sql/tenancy/convert_to_organization.sql"
ROUNDS = 6

_slugs = (f"converted-{number}" for number in count(1))


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Database:
    """Of the stack where a test asks for one. Else no sidecar is there, which would write to it whenever it likes."""
    if "stack" in request.fixturenames:
        stack: RunningStack = request.getfixturevalue("stack")
        return stack.database
    shared: Database = request.getfixturevalue("shared_database")
    return shared


@pytest.fixture
def superuser(database: Database) -> Iterator[Connection]:
    with database.connect() as connection:
        yield connection


@pytest.fixture
def personal(database: Database, superuser: Connection, make_organization: MakeOrganization) -> Organization:
    """One with somebody in every role, and something of everything that is kept for an organization."""
    made = make_organization(database, kind="personal")
    for statement in (
        "insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'First')",
        """
        insert into tenancy.invitations (organization_id, email, role, code_sha256, invited_by, expires_at)
        values (%(org)s, 'eve@example.com', 'viewer', sha256('code'), %(owner)s, now() + interval '1 day')""",
        """
        insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes, created_by)
        values ('organization', %(org)s, 'Key', left(md5(%(org)s::text), 12), sha256('key'), '{data:read}', %(owner)s)
        """,
        "insert into app.clients (organization_id, name) values (%(org)s, 'Client')",
        "insert into app.documents (organization_id, title) values (%(org)s, 'Document')",  # records doc.upload
    ):
        run(superuser, statement, {"org": made.id, "owner": made["owner"].id})
    return made


def convert(client: httpx.Client, slug: str | None = None, name: str = "Firm") -> httpx.Response:
    return client.post("/api/v1/rpc/convert_to_organization", json={"name": name, "slug": slug or next(_slugs)})


def convert_in_sql(connection: Connection, organization: Organization, slug: str | None = None) -> str:
    """A request as the owner, committed. What became of it: `converted`, or the message of the refusal."""
    try:
        with connection.transaction():
            enter(connection, Caller("member", organization["owner"].subject))
            run(connection, CONVERT, {"name": "Firm", "slug": slug or next(_slugs)})
    except psycopg.Error as error:
        return error.diag.message_primary or ""
    return "converted"


def conversion(organization: Organization, slug: str | None = None) -> Callable[[Connection], str]:
    return lambda connection: convert_in_sql(connection, organization, slug)


def row(superuser: Connection, organization: Organization) -> dict[str, Any]:
    found: dict[str, Any] = value(
        superuser, "select to_jsonb(o) from tenancy.organizations o where id = %s", organization.id
    )
    return found


Snapshot = Mapping[str, Sequence[Any]]


def snapshot(superuser: Connection) -> Snapshot:
    """Every row of every table, whoever it belongs to."""
    tables = superuser.execute(
        """
        select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and n.nspname !~ '^(pg_|information_schema$)'
        """
    ).fetchall()
    found = {}
    for schema, table in tables:
        query = sql.SQL("select to_jsonb(t) from {}.{} t order by to_jsonb(t)::text").format(
            sql.Identifier(schema), sql.Identifier(table)
        )
        found[f"{schema}.{table}"] = [content for (content,) in superuser.execute(query)]
    return found


# What it does


def test_the_same_organization_goes_on(stack: RunningStack, superuser: Connection, personal: Organization) -> None:
    before, asked_at = snapshot(superuser), datetime.now(UTC)
    slug = next(_slugs)
    with stack.client(personal["owner"].subject) as owner:
        answer = convert(owner, slug, "  Hopper & Co  ")
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert owner.get(f"/api/v1/organizations?id=eq.{personal.id}").json() == [made]
    assert (made["id"], made["kind"], made["name"], made["slug"]) == (
        str(personal.id),
        "organization",
        "Hopper & Co",
        slug,
    )
    assert asked_at <= datetime.fromisoformat(made["billing_start_at"]) <= datetime.now(UTC)

    after = snapshot(superuser)
    # These requests are metered meanwhile, rolled up, and told of: of usage, what was there stays.
    by_itself = ("audit.", "metering.", "notifications.", "billing.alert_queue")
    changed = {table for table in before if before[table] != after[table] and not table.startswith(by_itself)}
    assert changed == {"tenancy.organizations", "tenancy.workspaces"}
    for table in (table for table in before if table.startswith("metering.usage_events")):
        assert all(event in after[table] for event in before[table])
    [(was, is_now)] = differences(before, after, "tenancy.organizations")
    assert was | {key: made[key] for key in ("kind", "name", "slug", "billing_start_at")} == is_now
    assert [(a | {"place": None}, b) for a, b in differences(before, after, "tenancy.workspaces")] == [
        (b, b) for _, b in differences(before, after, "tenancy.workspaces")
    ]


def differences(before: Snapshot, after: Snapshot, table: str) -> list[tuple[Any, Any]]:
    """The rows that changed, as they were and as they are."""
    were, are = ({(each.get("organization_id"), each["id"]): each for each in rows[table]} for rows in (before, after))
    assert set(were) == set(are)
    return [(were[key], are[key]) for key in were if were[key] != are[key]]


def test_it_has_as_many_workspaces_as_it_likes(stack: RunningStack, personal: Organization) -> None:
    with stack.client(personal["owner"].subject) as owner:
        assert owner.post("/api/v1/workspaces", json={"name": "Second"}).status_code == 403
        assert convert(owner).status_code == 200
        for name in ("Second", "Third"):
            assert owner.post("/api/v1/workspaces", json={"name": name}).status_code == 201
        assert len(owner.get("/api/v1/workspaces").json()) == 3


def test_everybody_goes_on_with_the_token_they_have(stack: RunningStack, personal: Organization) -> None:
    """By whatever they name it. The slug that it had is nobody's now: the gateway, which asks again after half a
    minute, may go on to mean the same organization by it, but never another one.
    """
    slug = next(_slugs)
    names = {"default": None, "id": str(personal.id), "slug": personal.slug}

    def members_seen_by(
        role: str, organization: str | None, url: str = f"{stack.gateway_url}/api/v1"
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {stack.token(personal[role].subject)}"}
        if organization is not None:
            headers["X-Organization-ID"] = organization
        return httpx.get(f"{url}/memberships?order=user_id", headers=headers, trust_env=False, timeout=30)

    def seen() -> dict[str, list[object]]:
        return {role: [members_seen_by(role, name).json() for name in names.values()] for role in ROLES}

    before = seen()
    with stack.client(personal["owner"].subject) as owner:
        assert convert(owner, slug).status_code == 200
    names["slug"] = slug
    assert seen() == before
    for role in ROLES:
        refused = members_seen_by(role, personal.slug, stack.postgrest_url)
        assert (refused.status_code, refused.json()["message"][:12]) == (403, "NOT_A_MEMBER")


def test_its_old_slug_is_free(stack: RunningStack, personal: Organization, superuser: Connection) -> None:
    """And what is asked for by it from then on is the new organization's: read, and metered."""
    by_slug = {"X-Organization-ID": personal.slug}
    with stack.client(personal["owner"].subject) as owner:
        assert owner.get("/api/v1/cases", headers=by_slug).json() == []
        assert convert(owner).status_code == 200
        founded = owner.post("/api/v1/rpc/create_organization", json={"name": "Next", "slug": personal.slug})
        assert founded.status_code == 200
        marker = f"marker-{uuid4()}"
        assert owner.get("/api/v1/cases", headers=by_slug | {"X-Request-ID": marker}).status_code == 200
    metered = "select distinct organization_id from metering.usage_events where request_id = %s"
    found = eventually(lambda: superuser.execute(metered, [marker]).fetchall(), bool, seconds=60)
    assert found == [(UUID(founded.json()["id"]),)]


def test_it_may_keep_its_slug(stack: RunningStack, personal: Organization) -> None:
    with stack.client(personal["owner"].subject) as owner:
        assert convert(owner, personal.slug).json()["slug"] == personal.slug


# Who may, and when


@pytest.mark.parametrize("role", [role for role in ROLES if role != "owner"])
def test_only_the_owner_converts(stack: RunningStack, personal: Organization, superuser: Connection, role: str) -> None:
    before = snapshot(superuser)
    with stack.client(personal[role].subject) as client:
        assert_problem(convert(client), 403, "ROLE_REQUIRED")
    assert snapshot(superuser)["tenancy.organizations"] == before["tenancy.organizations"]


@pytest.mark.parametrize("role", ["service", "platform_admin"])
def test_services_and_staff_do_not_convert(stack: RunningStack, personal: Organization, role: str) -> None:
    for org in (None, personal.id):
        with stack.client("staff", role=role, org=org) as client:
            assert_problem(convert(client), 403, "ROLE_REQUIRED")


def test_keys_and_nobody_do_not_convert(database: Database, superuser: Connection, personal: Organization) -> None:
    key = value(superuser, "select id::text from tenancy.api_keys where organization_id = %s", personal.id)
    parameters = {"name": "Firm", "slug": next(_slugs)}
    with database.connect("authenticator") as connection:
        with (
            pytest.raises(psycopg.Error, match="ROLE_REQUIRED"),
            request(connection, Caller("member", claims={"goldleaves_key": key})),
        ):
            run(connection, CONVERT, parameters)
        with pytest.raises(psycopg.errors.InsufficientPrivilege), request(connection, Caller("anon")):
            run(connection, CONVERT, parameters)
        with (
            pytest.raises(psycopg.Error, match="ROLE_REQUIRED"),
            request(connection, Caller("member", personal["owner"].subject, pre_request=False)),
        ):
            run(connection, CONVERT, parameters)


def test_owners_elsewhere_do_not_convert_it(
    stack: RunningStack, personal: Organization, make_organization: MakeOrganization
) -> None:
    other = make_organization(stack.database, kind="personal", roles=("owner",))
    with stack.client(other["owner"].subject, org=personal.id) as client:
        assert_problem(convert(client), 403, "NOT_A_MEMBER")


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"name": " "}, (400, "INVALID_NAME")),
        ({"name": None}, (400, "INVALID_NAME")),
        ({"name": "x" * 201}, (400, "INVALID_NAME")),
        ({"slug": None}, (400, "INVALID_SLUG")),
        ({"slug": "No Slug"}, (400, "INVALID_SLUG")),
        ({"slug": "a\n"}, (400, "INVALID_SLUG")),
        ({"slug": "550e8400-e29b-41d4-a716-446655440000"}, (400, "INVALID_SLUG")),
        ({"slug": "taken"}, (409, "SLUG_TAKEN")),
    ],
)
def test_names_and_slugs_are_those_of_organizations(
    stack: RunningStack,
    personal: Organization,
    superuser: Connection,
    make_organization: MakeOrganization,
    details: dict[str, object],
    expected: tuple[int, str],
) -> None:
    if not value(superuser, "select count(*) from tenancy.organizations where slug = 'taken'"):
        make_organization(stack.database, "taken", roles=("owner",))
    before = row(superuser, personal)
    with stack.client(personal["owner"].subject) as owner:
        body = {"name": "Firm", "slug": next(_slugs), **details}
        assert_problem(owner.post("/api/v1/rpc/convert_to_organization", json=body), *expected)
    assert row(superuser, personal) == before


def test_it_happens_once(stack: RunningStack, personal: Organization, make_organization: MakeOrganization) -> None:
    founded = make_organization(stack.database)
    with stack.client(personal["owner"].subject) as owner, stack.client(founded["owner"].subject) as other:
        assert convert(owner).status_code == 200
        for refused in (convert(owner), convert(other)):
            assert_problem(refused, 409, "ALREADY_AN_ORGANIZATION")


def test_who_is_refused_holds_up_nobody(
    database: Database, superuser: Connection, personal: Organization, make_organization: MakeOrganization
) -> None:
    """The period lock is also that of other organizations: refusals are not to be a way to take it again and again."""
    founded = make_organization(database)
    with database.connect("authenticator") as connection, superuser.transaction():
        for organization in (personal, founded):
            superuser.execute("select billing.share_period_locks(array[%s::uuid])", [organization.id])
        assert convert_in_sql(connection, personal, founded.slug).startswith("SLUG_TAKEN: ")
        assert convert_in_sql(connection, founded).startswith("ALREADY_AN_ORGANIZATION: ")


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_a_snapshot_from_before_its_locks_is_refused(
    database: Database, personal: Organization, level: IsolationLevel
) -> None:
    with database.connect("authenticator") as connection:
        connection.isolation_level = level
        assert convert_in_sql(connection, personal).startswith("ISOLATION_LEVEL: ")


# When something fails

FAIL = """
  create function public.fail() returns trigger language plpgsql as $$
  begin raise exception using errcode = coalesce(tg_argv[0], 'P0001'), message = 'injected'; end $$
"""
AT_STEP: Mapping[str, Sequence[str]] = {
    "lock": [
        """
        create or replace function billing.start_billing(p_organization_id uuid) returns timestamptz
        language plpgsql volatile set search_path = '' as $$ begin raise exception 'injected'; end $$""",
    ],
    "organization": [
        f"create trigger fail {when} update on tenancy.organizations {each} execute function public.fail({code})"
        for when in ("before", "after")
        for each in ("for each row", "for each statement")
        for code in (("", "'23505'") if each == "for each row" else ("",))
    ],
    "workspaces": [
        f"create trigger fail {when} update on tenancy.workspaces {each} execute function public.fail()"
        for when in ("before", "after")
        for each in ("for each row", "for each statement")
    ],
}


@contextmanager
def injected(superuser: Connection, statement: str) -> Iterator[None]:
    """Somebody put in what breaks the step. All is as it was afterwards."""
    billing = value(superuser, "select pg_get_functiondef('billing.start_billing(uuid)'::regprocedure)")
    superuser.execute(FAIL)
    try:
        run(superuser, statement)
        yield
    finally:
        superuser.execute("drop function public.fail() cascade")
        superuser.execute(billing)


def test_every_step_is_made_to_fail() -> None:
    assert set(re.findall(r"v_step := '(\w+)'", SOURCE.read_text())) == set(AT_STEP)


@pytest.mark.parametrize(("step", "fault"), [(step, fault) for step, faults in AT_STEP.items() for fault in faults])
def test_a_failure_leaves_no_trace(
    database: Database, superuser: Connection, personal: Organization, step: str, fault: str
) -> None:
    """Also when the one who calls it goes on in the same transaction, and commits."""
    with injected(superuser, fault), database.connect("authenticator") as connection:
        before = snapshot(superuser)
        with connection.transaction():
            enter(connection, Caller("member", personal["owner"].subject))
            with pytest.raises(psycopg.Error) as failed, connection.transaction():
                run(connection, CONVERT, {"name": "Firm", "slug": next(_slugs)})
        assert snapshot(superuser) == before
    told = failed.value.diag
    assert (failed.value.sqlstate, told.message_primary, told.message_detail) == (
        "PT500",
        f"CONVERSION_FAILED: step {step}: injected",
        f"step: {step}",
    )
    with database.connect("authenticator") as connection:
        assert convert_in_sql(connection, personal) == "converted"  # nothing is in the way of the next try


def test_over_http_details_name_the_step(stack: RunningStack, superuser: Connection, personal: Organization) -> None:
    with injected(superuser, AT_STEP["workspaces"][0]), stack.client(personal["owner"].subject) as owner:
        before = row(superuser, personal)
        failed = convert(owner)
        assert_problem(failed, 500, "CONVERSION_FAILED")
        assert failed.json()["details"] == "step: workspaces"
        assert row(superuser, personal) == before


def test_codes_of_others_stay_as_they_are(database: Database, superuser: Connection, personal: Organization) -> None:
    fault = "create trigger fail before update on tenancy.workspaces for each row execute function public.fail('PT418')"
    with injected(superuser, fault), database.connect("authenticator") as connection:
        before = row(superuser, personal)
        assert convert_in_sql(connection, personal) == "injected"
        assert row(superuser, personal) == before


def test_a_failure_at_commit_leaves_no_trace(database: Database, superuser: Connection, personal: Organization) -> None:
    fault = """
        create constraint trigger fail after update on tenancy.organizations deferrable initially deferred
        for each row execute function public.fail()
    """
    with injected(superuser, fault), database.connect("authenticator") as connection:
        before = snapshot(superuser)
        assert convert_in_sql(connection, personal) == "injected"
        assert snapshot(superuser) == before


# At the same moment


def personal_ones(database: Database, make: MakeOrganization) -> list[Organization]:
    return [make(database, kind="personal", roles=("owner", "admin")) for _ in range(ROUNDS)]


def test_of_two_at_once_one_converts(
    database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    for organization in personal_ones(database, make_organization):
        outcomes = race(database, [conversion(organization)] * 3, "authenticator")
        refused = [outcome for outcome in outcomes if outcome != "converted"]
        assert len(refused) == 2, outcomes
        assert all(outcome.startswith("ALREADY_AN_ORGANIZATION: ") for outcome in refused), outcomes


def test_of_two_with_one_slug_one_converts(database: Database, make_organization: MakeOrganization) -> None:
    organizations = personal_ones(database, make_organization)
    for pair in zip(organizations[::2], organizations[1::2], strict=False):
        slug = next(_slugs)
        actions = [conversion(each, slug) for each in pair]
        assert sorted(race(database, actions, "authenticator")) == [
            f"SLUG_TAKEN: another organization is called {slug}",
            "converted",
        ]


def write(organization: Organization, *statements: str) -> Callable[[Connection], str]:
    """A transaction of the organization's admin. `written`, or the message of the refusal."""

    def act(connection: Connection) -> str:
        try:
            with connection.transaction():
                enter(connection, Caller("member", organization["admin"].subject))
                for statement in statements:
                    run(connection, statement)
        except psycopg.Error as error:
            return error.diag.message_primary or ""
        return "written"

    return act


NEW_WORKSPACE = "insert into api.workspaces (name) values ('New')"
NEW_DOCUMENT = "insert into api.documents (title) values ('New')"
NEW_CLIENT = "insert into api.clients (name) values ('New')"
RENAME = "update api.workspaces set name = 'Renamed'"


def test_workspaces_made_meanwhile_belong_to_what_it_is_then(
    database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    made = refused = 0
    for organization in personal_ones(database, make_organization):
        writers = [write(organization, NEW_WORKSPACE)] * 3
        converted, *outcomes = race(
            database,
            [conversion(organization), *writers],
            "authenticator",
        )
        assert converted == "converted"
        made += outcomes.count("written")
        refused += sum(outcome.startswith("WORKSPACE_LIMIT: ") for outcome in outcomes)
        places = superuser.execute(
            "select place from tenancy.workspaces where organization_id = %s", [organization.id]
        ).fetchall()
        assert places == [(None,)] * outcomes.count("written")
    assert made + refused == 3 * ROUNDS


@pytest.mark.parametrize(
    "statements",
    [
        (NEW_DOCUMENT,),  # refers to the organization, then shares the period lock
        (NEW_DOCUMENT, NEW_CLIENT),  # and the other way round
        (RENAME, NEW_DOCUMENT),
    ],
    ids=["document", "document, client", "workspace, document"],
)
def test_nobody_who_writes_meanwhile_is_refused(
    database: Database, superuser: Connection, make_organization: MakeOrganization, statements: tuple[str, ...]
) -> None:
    for organization in personal_ones(database, make_organization):
        run(
            superuser,
            "insert into tenancy.workspaces (organization_id, name) values (%s, 'First')",
            [organization.id],
        )
        actions = [write(organization, *statements)] * 3
        outcomes = race(
            database,
            [*actions, conversion(organization), *actions],
            "authenticator",
        )
        assert set(outcomes) == {"written", "converted"}
        payers = superuser.execute(
            """
            select count(*) from metering.usage_events e join tenancy.organizations o on o.id = e.organization_id
            where o.id = %s and (e.payer_user_id is null) <> (e.occurred_at >= o.billing_start_at)
            """,
            [organization.id],
        ).fetchone()
        assert payers == (0,)


def test_it_waits_for_nobody_who_has_only_referred_to_it(database: Database, personal: Organization) -> None:
    """One who has, and meters next, would wait for the conversion while that waits for them."""
    with (
        database.connect("authenticator") as writer,
        database.connect("authenticator") as converter,
        writer.transaction(),
    ):
        enter(writer, Caller("member", personal["member"].subject))
        writer.execute(NEW_CLIENT)
        assert convert_in_sql(converter, personal) == "converted"
        writer.execute(NEW_DOCUMENT)


def test_who_stays_in_its_way_is_named(stack: RunningStack, superuser: Connection, personal: Organization) -> None:
    """Before its time is over, which would only say that there was not enough of it."""
    with superuser.transaction():
        superuser.execute("select billing.share_period_locks(array[%s::uuid])", [personal.id])
        with stack.client(personal["owner"].subject, org=personal.id) as owner:
            assert_problem(convert(owner), 503, "PERIOD_BUSY")
    with stack.client(personal["owner"].subject, org=personal.id) as owner:
        assert convert(owner).status_code == 200


def test_who_is_in_its_way_goes_first(database: Database, superuser: Connection, personal: Organization) -> None:
    """One who renames a workspace, and meters next, waits for the conversion while that waits for them."""
    with (
        database.connect("authenticator") as writer,
        database.connect("authenticator") as converter,
        ThreadPoolExecutor(1) as pool,
    ):
        with writer.transaction():
            enter(writer, Caller("member", personal["admin"].subject))
            writer.execute(RENAME)
            converting = pool.submit(convert_in_sql, converter, personal)
            await_block(superuser, converter, writer)
            writer.execute(NEW_DOCUMENT)
            assert not converting.done()
        assert converting.result(60) == "converted"


# By no other means

BY_HAND = [
    "update tenancy.organizations set kind = 'personal', billing_start_at = null where id = %(converted)s",
    "update tenancy.organizations set kind = 'personal' where id = %(founded)s",
    """
    update tenancy.organizations set kind = 'personal', billing_user_id = owner_user_id where id = %(founded)s""",
    "update tenancy.organizations set billing_start_at = now() where id = %(personal)s",
    "update tenancy.organizations set billing_start_at = now() + interval '1 day' where id = %(converted)s",
    "update tenancy.organizations set billing_start_at = null where id = %(converted)s",
    "update tenancy.organizations set billing_start_at = null, billing_user_id = null where id = %(converted)s",
    """
    update tenancy.organizations set billing_start_at = now(), billing_user_id = owner_user_id
    where id = %(founded)s""",
    "update tenancy.organizations set billing_user_id = %(somebody)s where id = %(personal)s",
    "update tenancy.organizations set billing_user_id = %(somebody)s where id = %(converted)s",
    """
    update tenancy.organizations set kind = 'organization', billing_start_at = now(), billing_user_id = %(somebody)s
    where id = %(personal)s""",
    """
    insert into tenancy.organizations (kind, name, slug, owner_user_id, billing_user_id, billing_start_at)
    values ('organization', 'x', 'by-hand', %(somebody)s, %(somebody)s, now())""",
    """
    insert into tenancy.organizations as o (id, kind, name, slug, owner_user_id, billing_user_id)
    values (%(personal)s, 'personal', 'x', 'by-hand', %(somebody)s, %(somebody)s)
    on conflict (id) do update set billing_user_id = excluded.billing_user_id""",
]


@pytest.mark.parametrize("role", ["postgres", "goldleaves_kernel"])
@pytest.mark.parametrize("statement", BY_HAND)
def test_who_pays_changes_by_a_conversion_alone(
    database: Database,
    superuser: Connection,
    personal: Organization,
    make_organization: MakeOrganization,
    statement: str,
    role: str,
) -> None:
    founded, converted = make_organization(database), make_organization(database, kind="personal")
    with database.connect("authenticator") as connection:
        assert convert_in_sql(connection, converted) == "converted"
    ids = {"personal": personal.id, "founded": founded.id, "converted": converted.id, "somebody": personal["admin"].id}
    with pytest.raises(psycopg.Error, match="CONVERSION_ONLY") as refused, superuser.transaction():
        run(superuser, "grant update, insert on tenancy.organizations to goldleaves_kernel")
        run(superuser, f"set local role {role}")
        run(superuser, statement, ids)
    assert refused.value.sqlstate == "PT409"


def test_a_conversion_by_hand_has_to_say_since_when(superuser: Connection, personal: Organization) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        superuser.execute("update tenancy.organizations set kind = 'organization' where id = %s", [personal.id])
