"""Refusals reach the audit log: who, from where, how often. They are bounded whatever comes, wait while Postgres is
away, hold no secret, and nobody writes by them into the log of somebody else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
import pytest

from api.database import Database as Connected
from api.metrics import Metrics
from api.refusals import (
    MOST_NAMED,
    MOST_UNNAMED,
    RECORDED,
    REPEAT_SECONDS,
    UNNAMED_A_SECOND,
    UNNAMED_AT_ONCE,
    Refusal,
    Refusals,
    read_answer,
)
from api.spool import Spool
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization, RunningStack
from tests.observe import database_away, eventually

PLATFORM: Final = UUID(int=0)

Row = dict[str, Any]


def rows(database: Database, action: str | None = None) -> list[Row]:
    """What the audit log says of refusals, in the order in which it was written."""
    with database.connect() as connection:
        found = connection.execute(
            """
            select l.organization_id, l.actor_type, l.actor_id, l.action, l.after, a.data,
              c.data -> 'after' ->> 'detail'
            from audit.log l
            left join audit.personal a
              on a.organization_id = l.organization_id and a.position = l.position and a.part in ('actor', 'staff')
            left join audit.personal c
              on c.organization_id = l.organization_id and c.position = l.position and c.part = 'change'
            where l.action like 'refused.%%' and (%(action)s::text is null or l.action = 'refused.' || %(action)s)
            order by l.recorded_at, l.position
            """,
            {"action": action},
        ).fetchall()
    names = ("chain", "actor_type", "actor_id", "action", "after", "who", "detail")
    return [dict(zip(names, row, strict=True)) for row in found]


def count_of(found: list[Row]) -> int:
    return sum(row["after"]["count"] for row in found)


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


def test_a_foreign_organization_is_told_to_the_platform_alone(
    stack: RunningStack, organization: Organization, make_organization: MakeOrganization
) -> None:
    foreign = make_organization(stack.database)
    viewer = organization["viewer"]
    with stack.client(viewer.subject, org=foreign.slug) as client:
        assert client.get("/api/v1/invoices").status_code == 403

    def of_viewer() -> list[Row]:
        return [row for row in rows(stack.database, "not_a_member") if row["who"]["subject"] == viewer.subject]

    (row,) = eventually(of_viewer, bool)
    assert row["chain"] == PLATFORM
    assert (row["actor_type"], row["actor_id"]) == ("user", str(viewer.id))
    assert row["who"] == {"ip": "127.0.0.1", "subject": viewer.subject}
    assert row["detail"] == f"you are not a member of organization {foreign.slug}"
    assert row["after"]["count"] == 1
    assert not [row for row in rows(stack.database) if row["chain"] == foreign.id]


@pytest.mark.parametrize("role", ["service", "platform_admin"])
def test_the_providers_side_is_told_by_its_role(stack: RunningStack, role: str) -> None:
    """Although a person could have the same subject."""
    with stack.client(f"backend-{role}") as person:
        assert person.post("/api/v1/rpc/sign_in").status_code == 200
    with stack.client(f"backend-{role}", role=role, org="not-there") as client:
        assert client.get("/api/v1/usage_events").status_code == 404

    def of_backend() -> list[Row]:
        found = rows(stack.database, "organization_not_found")
        return [row for row in found if row["who"]["subject"] == f"backend-{role}"]

    (row,) = eventually(of_backend, bool)
    assert (row["actor_type"], row["actor_id"]) == (role, role)


def test_a_second_workspace_is_told_to_its_own_organization(stack: RunningStack) -> None:
    with stack.client("wanda", email="wanda@example.com") as client:
        assert client.post("/api/v1/workspaces", json={"name": "One"}).status_code == 201
        assert client.post("/api/v1/workspaces", json={"name": "Two"}).status_code == 403
        me = client.post("/api/v1/rpc/sign_in").json()
    (row,) = eventually(lambda: rows(stack.database, "workspace_limit"), bool)
    assert str(row["chain"]) == me["default_organization_id"]
    assert (row["actor_type"], row["actor_id"]) == ("user", me["user_id"])


def test_a_forged_token_leaves_nothing_of_itself(stack: RunningStack, organization: Organization) -> None:
    owner = organization["owner"].subject
    token = stack.token(owner, org=organization.id)
    forged = f"{token[:-6]}AAAAAA"
    secrets = [*token.split("."), "hunter2-in-a-name"]
    for authorization in (f"Bearer {forged}", "Basic hunter2-in-a-name", f"Bearer {token} {forged}"):
        headers = {"Authorization": authorization, "X-Organization-ID": str(organization.id)}
        assert httpx.get(f"{stack.gateway_url}/api/v1/cases", headers=headers, trust_env=False).status_code == 401
    stack.stop()  # writes what it has
    found = rows(stack.database, "invalid_token")
    stack.start()
    assert count_of(found) == 3
    assert {row["chain"] for row in found} == {PLATFORM}
    assert {row["actor_type"] for row in found} == {"anonymous"}
    assert all(row["who"] == {"ip": "127.0.0.1"} for row in found)
    kept = json.dumps(found, default=str)
    logged = stack.state.log("sidecar").read_text()
    for secret in secrets:
        assert secret not in kept
        assert secret not in logged
    assert owner not in kept


def test_what_is_tried_again_is_added_up(stack: RunningStack, organization: Organization) -> None:
    """One row, and what came since, a minute later."""
    with stack.client(organization["owner"].subject) as client:
        for _ in range(20):
            assert client.post("/v1/events", json=[]).status_code == 403
        found = eventually(lambda: rows(stack.database, "role_required"), bool)
        for _ in range(5):
            assert client.post("/v1/events", json=[]).status_code == 403
    assert len(found) == 1
    stack.stop()
    found = rows(stack.database, "role_required")
    assert len(found) <= 2
    assert count_of(found) == 25
    stack.start()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def refusals(database: Database, clock: Clock, tmp_path: Path) -> AsyncIterator[Refusals]:
    """Those of a sidecar, with a clock of their own, on a real database."""
    connected = Connected(database.sidecar, pool_size=1)
    with Spool(tmp_path / "spool", 2**20) as spool:
        yield Refusals(connected, Metrics(spool, connected), clock)
    await connected.close()


async def test_a_flood_fills_neither_memory_nor_the_log(database: Database, refusals: Refusals, clock: Clock) -> None:
    flood = 5_000
    for number in range(flood):
        refusals.note(Refusal("INVALID_TOKEN", ip=f"10.0.{number // 256}.{number % 256}"), None, "forged")
        refusals.note(Refusal("NOT_A_MEMBER", subject=f"bot-{number}", ip="10.0.0.1"), None, "tried")
    assert refusals.waiting() <= MOST_NAMED + MOST_UNNAMED + len(RECORDED)
    await refusals.write_due()
    found = rows(database)
    written = Counter(row["action"] for row in found)
    assert written["refused.invalid_token"] <= UNNAMED_AT_ONCE + 1
    assert written["refused.not_a_member"] == MOST_NAMED + 1
    assert count_of(rows(database, "not_a_member")) == flood

    minutes = 20
    for _ in range(minutes):
        clock.now += 60
        for number in range(20):
            refusals.note(Refusal("INVALID_TOKEN", ip=f"10.1.0.{number}"), None, "forged")
        await refusals.write_due()
    assert len(rows(database, "invalid_token")) <= 2 * UNNAMED_AT_ONCE + minutes * (60 * UNNAMED_A_SECOND + 1)
    await refusals.write_all()
    assert refusals.waiting() == 0
    assert count_of(rows(database, "invalid_token")) == flood + 20 * minutes


async def test_refusals_wait_for_postgres(database: Database, refusals: Refusals) -> None:
    refusal = Refusal("ROLE_REQUIRED", subject="ann", ip="10.0.0.1")
    with database_away(database):
        for _ in range(3):
            refusals.note(refusal, None, "tried")
            assert not await refusals.write_due()
    assert refusals.waiting() == 1
    assert await refusals.write_due()
    assert refusals.waiting() == 0
    (row,) = rows(database)
    assert row["after"]["count"] == 3
    assert row["after"]["first_at"] < row["after"]["last_at"]


async def test_the_same_again_is_written_a_minute_later(database: Database, refusals: Refusals, clock: Clock) -> None:
    refusal = Refusal("ROLE_REQUIRED", subject="ann", ip="10.0.0.1")
    refusals.note(refusal, None, "first")
    await refusals.write_due()
    refusals.note(refusal, None, "second")
    clock.now += REPEAT_SECONDS - 1
    await refusals.write_due()
    assert [row["detail"] for row in rows(database)] == ["first"]
    refusals.note(refusal, None, "third")
    refusals.note(refusal, None, "second")
    clock.now += 1
    await refusals.write_due()
    assert [row["detail"] for row in rows(database)] == ["first", "second (and others)"]


async def test_one_that_postgres_never_takes_costs_no_other(database: Database, refusals: Refusals) -> None:
    refusals.note(Refusal("ROLE_REQUIRED", subject="nul \0", ip="10.0.0.1"), None, "half a pair \ud800, nul \0")
    refusals.note(Refusal("ROLE_REQUIRED", subject="ann", ip="10.0.0.1"), None, "half a pair \ud800, nul \0")
    await refusals.write_due()
    assert refusals.waiting() == 0
    assert [row["detail"] for row in rows(database)] == ["half a pair ?, nul ?"]


async def test_only_what_an_attack_is_made_of_is_recorded(database: Database, refusals: Refusals) -> None:
    for code in (*RECORDED, "SLUG_TAKEN", "PGRST100", ""):
        refusals.note(Refusal(code, organization_id=uuid4(), subject="ann"), uuid4(), "text")
    await refusals.write_all()
    assert sorted(row["action"] for row in rows(database)) == sorted(f"refused.{code.lower()}" for code in RECORDED)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b'{"code":"PT403","message":"NOT_A_MEMBER: you","details":null,"hint":null}', "NOT_A_MEMBER", "you"),
        (
            b'{"code":"42501","details":null,"hint":null,"message":"permission denied: x"}',
            "42501",
            "permission denied: x",
        ),
        (b'{"code":"P0001","message":"NOT_A_MEMBER: not one of ours"}', "P0001", "NOT_A_MEMBER: not one of ours"),
        (b'{"code":"23514","details":"' + b"x" * 20_000, "23514", ""),
        (b"<html>", "", ""),
        (b"[1]", "", ""),
        (b'{"code": 7, "message": [], "details": {}}', "7", ""),
        (b"[" * 16_000, "", ""),
        (b"\xff", "", ""),
    ],
)
def test_codes_are_read_from_whatever_comes(body: bytes, code: str, text: str) -> None:
    answer = read_answer(body)
    assert (answer.code, answer.text) == (code, text)
