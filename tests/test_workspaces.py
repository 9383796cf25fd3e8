"""Workspaces: owners and admins have as many as they like, but in a personal organization there is one at most, whoever
writes, how many at once, and under every isolation level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg import IsolationLevel

from tests.conftest import MakeOrganization
from tests.harness import Database, Member, Organization, RunningStack
from tests.observe import await_block
from tests.sql_requests import Caller, Connection, enter, refusal_or_count, request
from tests.usage import race, value

LIMIT = "WORKSPACE_LIMIT: PERSONAL accounts can only create one workspace. Upgrade to ORG for unlimited workspaces."
ROUNDS = 20
LEVELS = (IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE)
NEW = "insert into api.workspaces (name) values ('New')"


def names_of(levels: IsolationLevel | Sequence[IsolationLevel]) -> str:
    return " ".join(level.name.lower() for level in ([levels] if isinstance(levels, IsolationLevel) else levels))


@pytest.fixture
def database(stack: RunningStack) -> Database:
    return stack.database


@pytest.fixture
def personal(database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(database, kind="personal")


@pytest.fixture
def owner(stack: RunningStack, personal: Organization) -> Iterator[httpx.Client]:
    with stack.client(personal["owner"].subject) as client:
        yield client


@pytest.fixture
def superuser(database: Database) -> Iterator[Connection]:
    with database.connect() as connection:
        yield connection


def post(client: httpx.Client, body: object, prefer: str = "return=representation") -> httpx.Response:
    return client.post("/api/v1/workspaces", json=body, headers={"Prefer": prefer})


def names(superuser: Connection, organization: Organization) -> list[str]:
    rows = superuser.execute(
        "select name from tenancy.workspaces where organization_id = %s order by 1", [organization.id]
    )
    return [name for (name,) in rows]


def places(superuser: Connection, organization: Organization) -> list[int | None]:
    rows = superuser.execute("select place from tenancy.workspaces where organization_id = %s", [organization.id])
    return [place for (place,) in rows]


def insert(superuser: Connection, organization: Organization, name: str = "First") -> UUID:
    found: UUID = value(
        superuser,
        "insert into tenancy.workspaces (organization_id, name) values (%s, %s) returning id",
        organization.id,
        name,
    )
    return found


# One in a personal organization


def test_second_one_is_refused_by_gateway_and_postgrest(
    stack: RunningStack, personal: Organization, owner: httpx.Client, superuser: Connection
) -> None:
    assert post(owner, {"name": "First"}).status_code == 201
    bearer = {"Authorization": f"Bearer {stack.token(personal['admin'].subject)}"}
    direct = httpx.post(f"{stack.postgrest_url}/workspaces", json={"name": "x"}, headers=bearer, trust_env=False)
    for refused in (post(owner, {"name": "Second"}), post(owner, [{"name": "a"}, {"name": "b"}]), direct):
        assert refused.status_code == 403
        body = refused.json()
        assert (body["code"], body["message"]) == ("PT403", LIMIT)
    assert names(superuser, personal) == ["First"]


@pytest.mark.parametrize(
    "rows", [[{"name": "a"}, {"name": "b"}], [{"id": str(uuid4()), "name": "a"}, {"id": str(uuid4()), "name": "b"}]]
)
@pytest.mark.parametrize("resolution", ["", "resolution=merge-duplicates", "resolution=ignore-duplicates"])
def test_two_at_once_are_refused_together(
    owner: httpx.Client, personal: Organization, superuser: Connection, resolution: str, rows: list[dict[str, str]]
) -> None:
    refused = post(owner, rows, resolution)
    assert (refused.status_code, refused.json()["message"]) == (403, LIMIT)
    assert names(superuser, personal) == []


def test_there_is_room_again_when_the_one_is_deleted(owner: httpx.Client) -> None:
    for name in ("First", "Second"):
        [made] = post(owner, {"name": name}).json()
        assert owner.delete(f"/api/v1/workspaces?id=eq.{made['id']}").status_code == 204


def test_the_one_is_renamed_sent_back_and_upserted(owner: httpx.Client) -> None:
    merge = "return=representation,resolution=merge-duplicates"
    [made] = post(owner, {"name": "First"}).json()
    whole = made | {"name": "Renamed"}
    patched = owner.patch(
        f"/api/v1/workspaces?id=eq.{made['id']}", json=whole, headers={"Prefer": "return=representation"}
    )
    assert patched.json() == [whole]
    assert post(owner, made, merge).json() == [made]
    assert post(owner, [{"id": made["id"], "name": "Again"}], merge).json() == [made | {"name": "Again"}]
    assert post(owner, made, "return=representation,resolution=ignore-duplicates").json() == []


WAYS_ROUND: dict[str, str] = {
    "plainly": "insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'x')",
    "several rows": "insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'x'), (%(org)s, 'y')",
    "without a place": "insert into tenancy.workspaces (organization_id, name, place) values (%(org)s, 'x', null)",
    "with the place": "insert into tenancy.workspaces (organization_id, name, place) values (%(org)s, 'x', 1)",
    "or else nothing": """
        insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'x') on conflict do nothing""",
    "or else a rename": """
        insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'x')
        on conflict on constraint workspaces_one_of_a_personal_organization do update set name = 'x'""",
    "by merge": """
        merge into tenancy.workspaces w using (select %(org)s as organization_id) n on false
        when not matched then insert (organization_id, name) values (n.organization_id, 'x')""",
    "moved in": "update tenancy.workspaces set organization_id = %(org)s where organization_id = %(other)s",
    "moved in without a place": """
        update tenancy.workspaces set organization_id = %(org)s, place = null where organization_id = %(other)s""",
}


@pytest.mark.parametrize("way", WAYS_ROUND)
def test_a_superuser_makes_no_second_one(
    database: Database, superuser: Connection, personal: Organization, make_organization: MakeOrganization, way: str
) -> None:
    other = make_organization(database, roles=("owner",))
    insert(superuser, personal)
    insert(superuser, other, "Elsewhere")
    with pytest.raises(psycopg.Error) as refused:
        superuser.execute(WAYS_ROUND[way].encode(), {"org": personal.id, "other": other.id})
    assert (refused.value.sqlstate, refused.value.diag.message_primary) == ("PT403", LIMIT)
    assert names(superuser, personal) == ["First"]


def test_copy_makes_no_second_one(superuser: Connection, personal: Organization) -> None:
    with (
        pytest.raises(psycopg.Error, match="WORKSPACE_LIMIT"),
        superuser.cursor().copy("copy tenancy.workspaces (organization_id, name) from stdin") as copy,
    ):
        for name in ("a", "b"):
            copy.write_row((personal.id, name))
    assert names(superuser, personal) == []


def test_its_place_is_not_given_away_by_hand(superuser: Connection, personal: Organization) -> None:
    insert(superuser, personal)
    superuser.execute("update tenancy.workspaces set place = null where organization_id = %s", [personal.id])
    assert places(superuser, personal) == [1]


def test_moved_out_it_has_no_place(
    database: Database, superuser: Connection, personal: Organization, make_organization: MakeOrganization
) -> None:
    other = make_organization(database, roles=("owner",))
    insert(superuser, personal)
    superuser.execute(
        "update tenancy.workspaces set organization_id = %s where organization_id = %s", [other.id, personal.id]
    )
    assert places(superuser, other) == [None]
    insert(superuser, personal)


# At the same moment


def new_workspace(level: IsolationLevel, member: Member) -> Callable[[Connection], str]:
    """A request in a transaction of that level. What became of it: made, or the message of the refusal."""

    def make(connection: Connection) -> str:
        connection.isolation_level = level
        try:
            with connection.transaction():
                enter(connection, Caller("member", member.subject))
                connection.execute(NEW)
        except psycopg.Error as error:
            return error.sqlstate or ""
        return "made"

    return make


@pytest.mark.parametrize("levels", [LEVELS[:1] * 4, LEVELS[1:2] * 4, LEVELS[2:] * 4, LEVELS + LEVELS], ids=names_of)
def test_at_once_one_is_made(
    database: Database, superuser: Connection, make_organization: MakeOrganization, levels: Sequence[IsolationLevel]
) -> None:
    organizations = [make_organization(database, kind="personal", roles=("owner",)) for _ in range(ROUNDS)]
    barrier = Barrier(len(levels))

    def make_all(level: IsolationLevel) -> list[str]:
        with database.connect("authenticator") as connection:
            outcomes = []
            for organization in organizations:
                barrier.wait(60)
                outcomes.append(new_workspace(level, organization["owner"])(connection))
            return outcomes

    with ThreadPoolExecutor(len(levels)) as pool:
        rounds = list(zip(*pool.map(make_all, levels), strict=True))
    for organization, outcomes in zip(organizations, rounds, strict=True):
        assert places(superuser, organization) == [1]
        assert outcomes.count("made") == 1, outcomes
        for outcome, level in zip(outcomes, levels, strict=True):
            # A snapshot does not show what came after it: then the key refuses, or the transaction has to be repeated.
            allowed = {"made", "PT403"} | ({"23505", "40001"} if level is not LEVELS[0] else set())
            assert outcome in allowed, outcomes


@pytest.mark.parametrize("level", LEVELS, ids=names_of)
def test_who_waits_for_another_is_refused_when_that_one_commits(
    database: Database, superuser: Connection, personal: Organization, level: IsolationLevel
) -> None:
    """The second one has looked at everything before the first one commits."""
    with (
        database.connect("authenticator") as first,
        database.connect("authenticator") as second,
        ThreadPoolExecutor(1) as pool,
    ):
        with first.transaction():
            enter(first, Caller("member", personal["owner"].subject))
            first.execute(NEW)
            waiting = pool.submit(new_workspace(level, personal["admin"]), second)
            await_block(superuser, second, first)
        outcome = waiting.result(60)
    assert outcome in (("PT403",) if level is LEVELS[0] else ("23505", "40001"))
    assert len(names(superuser, personal)) == 1


@pytest.mark.parametrize("level", LEVELS, ids=names_of)
def test_who_waits_for_another_goes_on_when_that_one_gives_up(
    database: Database, superuser: Connection, personal: Organization, level: IsolationLevel
) -> None:
    with (
        database.connect("authenticator") as first,
        database.connect("authenticator") as second,
        ThreadPoolExecutor(1) as pool,
    ):
        with first.transaction(force_rollback=True):
            enter(first, Caller("member", personal["owner"].subject))
            first.execute(NEW)
            waiting = pool.submit(new_workspace(level, personal["admin"]), second)
            await_block(superuser, second, first)
        assert waiting.result(60) == "made"
    assert len(names(superuser, personal)) == 1


def test_superusers_at_once_make_one(database: Database, superuser: Connection, personal: Organization) -> None:
    def make(connection: Connection) -> str | None:
        try:
            insert(connection, personal)
        except psycopg.Error as error:
            return error.diag.message_primary
        return None

    assert sorted(race(database, [make] * 6, "postgres"), key=str) == [None] + [LIMIT] * 5
    assert len(names(superuser, personal)) == 1


# In an organization


@pytest.mark.parametrize("role", ["owner", "admin"])
def test_organizations_have_as_many_as_they_like(
    stack: RunningStack, make_organization: MakeOrganization, superuser: Connection, role: str
) -> None:
    organization = make_organization(stack.database)
    with stack.client(organization[role].subject) as client:
        rows: list[dict[str, Any]] = post(client, [{"name": f"Room {number}"} for number in range(5)]).json()
        assert {row["organization_id"] for row in rows} == {str(organization.id)}
        assert {row["created_by"] for row in rows} == {str(organization[role].id)}
        assert post(client, {"name": "Room 6"}).status_code == 201
        forged = post(client, {"name": "Room 7", "created_by": str(uuid4()), "created_at": "1999-01-01Z"}).json()[0]
        assert forged["created_by"] == str(organization[role].id)
        assert forged["created_at"] > "2020"
        moved_id = client.patch(f"/api/v1/workspaces?id=eq.{forged['id']}", json={"id": str(uuid4())})
        assert (moved_id.status_code, moved_id.json()["message"][:11]) == (409, "ID_IS_FIXED")
    assert places(superuser, organization) == [None] * 7


def test_blank_and_long_names_are_refused(owner: httpx.Client) -> None:
    for name in ("", "  ", "x" * 201):
        assert post(owner, {"name": name}).json()["code"] == "23514"
    assert post(owner, {"name": None}).json()["code"] == "23502"


# What the limit tells


@pytest.mark.parametrize("role", ["member", "viewer", "billing"])
def test_who_may_make_none_is_told_so_and_not_the_limit(
    database: Database, superuser: Connection, personal: Organization, role: str
) -> None:
    insert(superuser, personal)
    with (
        database.connect("authenticator") as connection,
        request(connection, Caller("member", personal[role].subject)),
    ):
        assert isinstance(refusal_or_count(connection, NEW), psycopg.errors.InsufficientPrivilege)


def test_the_limit_of_a_foreign_organization_is_no_oracle(
    stack: RunningStack, personal: Organization, make_organization: MakeOrganization, superuser: Connection
) -> None:
    full = make_organization(stack.database, kind="personal", roles=("owner",))
    empty = make_organization(stack.database, kind="personal", roles=("owner",))
    insert(superuser, full)
    with stack.client(personal["owner"].subject) as client:
        for resolution in ("", "resolution=merge-duplicates", "resolution=ignore-duplicates"):
            answers = [
                post(client, {"name": "x", "organization_id": str(target)}, resolution)
                for target in (full.id, empty.id, uuid4())
            ]
            assert {answer.status_code for answer in answers} == {403}
            assert len({answer.text for answer in answers}) == 1, answers[0].text
            assert answers[0].json()["code"] == "42501"
