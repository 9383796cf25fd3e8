"""What could not be accepted is kept, and resolved by the provider's staff: mended and replayed, or dismissed. A replay
counts once, and what is refused again stays open and says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.audit_log import PLATFORM, entries, length
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Caller, enter, request
from tests.usage import Connection, Event, event, finalize, ingest, moment, month, race, value

LOCKED = "BILLING_PERIOD_LOCKED"
ROUNDS = 6


@dataclass(frozen=True)
class Rejected:
    """As staff sees it."""

    id: UUID
    code: str
    message: str
    event: Any
    resolution: str | None


@dataclass(frozen=True)
class Replay:
    outcome: str
    code: str | None = None
    message: str | None = None


class Staff:
    """platform_admin, a request a call."""

    def __init__(self, connection: Connection, organization: Organization | None = None) -> None:
        self._connection = connection
        self._caller = Caller("platform_admin", "staff|1", str(organization.id) if organization else None)

    def call(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._connection.transaction():
            enter(self._connection, self._caller)
            return self._connection.execute(statement, parameters).fetchall()

    def rejected(self, source: str) -> list[Rejected]:
        found = self.call(
            "select id, code, message, event, resolution from api.rejected_events where source = %s order by id", source
        )
        return [Rejected(*row) for row in found]

    def replay(self, rejected: UUID, mended: Event | None = None, **named: object) -> Replay:
        arguments = "".join(f", {name} => %s" for name in named)
        return Replay(
            *self.call(
                f"select outcome, code, message from api.replay_rejected_event(%s, %s::jsonb{arguments})",
                rejected,
                mended and json.dumps(mended),
                *named.values(),
            )[0]
        )

    def dismiss(self, rejected: UUID, reason: str | None = None) -> Rejected:
        [row] = self.call(
            "select id, code, message, event, resolution from api.dismiss_rejected_event(%s, %s)", rejected, reason
        )
        return Rejected(*row)


@pytest.fixture(scope="module")
def superuser(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as connection:
        connection.execute("select ops.maintain()")
        yield connection


@pytest.fixture
def staff(shared_database: Database) -> Iterator[Staff]:
    with shared_database.connect("authenticator") as connection:
        yield Staff(connection)


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def source() -> str:
    """One of the test's own, which tells its rows from others."""
    return f"https://{uuid4()}.example"


def recorded(connection: Connection, organization: Organization) -> list[tuple[Any, ...]]:
    return connection.execute(
        """
        select idempotency_key, source, event_type, quantity, belongs_at
        from metering.usage_events where organization_id = %s order by id
        """,
        [organization.id],
    ).fetchall()


def code_of(error: pytest.ExceptionInfo[psycopg.Error]) -> str:
    return str(error.value).partition(":")[0]


def test_a_mended_event_counts(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    assert len(ingest(sidecar, [event("a", quantity=-1)], organization.id, source=source).rejected) == 1
    [rejected] = staff.rejected(source)
    assert (rejected.code, rejected.resolution, rejected.event["quantity"]) == ("INVALID_EVENT", None, -1)

    # As it was, it is as wrong as before; and so it may be with another fault.
    again = staff.replay(rejected.id)
    assert (again.outcome, again.code) == ("rejected", "INVALID_EVENT")
    worse = staff.replay(rejected.id, event("a", name="no name"))
    assert (worse.outcome, worse.code) == ("rejected", "INVALID_EVENT")
    [kept] = staff.rejected(source)
    assert (kept.id, kept.message, kept.event, kept.resolution) == (rejected.id, worse.message, rejected.event, None)
    assert worse.message is not None and "name" in worse.message and worse.message != again.message
    assert recorded(superuser, organization) == []

    # A rejected event used up no key: the same id is free for it.
    assert staff.replay(rejected.id, event("a", quantity=1)) == Replay("accepted")
    assert recorded(superuser, organization) == [("a", source, "usage", 1, None)]
    [replayed] = staff.rejected(source)
    assert (replayed.resolution, replayed.event) == ("replayed", rejected.event)
    for resolve in (staff.replay, staff.dismiss):
        with pytest.raises(psycopg.Error) as refused:
            resolve(rejected.id)
        assert code_of(refused) == "REJECTED_EVENT_RESOLVED"


def test_what_came_in_the_meantime_is_a_duplicate(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    """The sender mended it as well."""
    ingest(sidecar, [event("a", quantity=-1)], organization.id, source=source)
    ingest(sidecar, [event("a", quantity=1)], organization.id, source=source)
    [rejected] = staff.rejected(source)
    conflict = staff.replay(rejected.id, event("a", quantity=2))
    assert (conflict.outcome, conflict.code) == ("rejected", "IDEMPOTENCY_CONFLICT")
    assert staff.replay(rejected.id, event("a", quantity=1)) == Replay("duplicate")
    assert [row.resolution for row in staff.rejected(source)] == ["replayed"]
    assert len(recorded(superuser, organization)) == 1


def test_a_conflict_is_mended_by_an_id_of_its_own(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    ingest(sidecar, [event("a", quantity=1), event("a", quantity=2)], organization.id, source=source)
    [rejected] = staff.rejected(source)
    assert rejected.code == "IDEMPOTENCY_CONFLICT"
    assert staff.replay(rejected.id, {**rejected.event, "id": "b"}) == Replay("accepted")
    assert {row[0] for row in recorded(superuser, organization)} == {"a", "b"}


def test_late_events_count_on_the_open_period(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    at = moment(1, days=2)
    finalize(superuser, organization.id, month(1))
    ingest(sidecar, [event("a", at, quantity=3)], organization.id, source=source)
    [rejected] = staff.rejected(source)
    assert staff.replay(rejected.id).code == LOCKED
    with pytest.raises(psycopg.Error) as refused:
        staff.replay(rejected.id, late="perhaps")
    assert code_of(refused) == "INVALID_EVENT"
    assert staff.replay(rejected.id, late="adjust") == Replay("accepted")
    assert recorded(superuser, organization) == [("a", source, "adjustment", 3, at)]


def test_its_organization_stays_unless_there_is_none(
    shared_database: Database, sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization,
    make_organization: MakeOrganization, source: str,
) -> None:  # fmt: skip
    other, nobody = make_organization(shared_database), uuid4()
    for lost in (event("x"), event("y", organization_id=str(nobody)), event("z", organization_id="acme")):
        ingest(sidecar, [lost], source=source)
    ingest(sidecar, [event("ours", quantity=-1)], organization.id, source=source)
    *lost_ones, ours = staff.rejected(source)

    stolen = staff.replay(ours.id, event("ours", organization_id=str(other.id)))
    assert (stolen.outcome, stolen.code) == ("rejected", "INVALID_EVENT")
    for rejected in lost_ones:
        assert staff.replay(rejected.id).code == "INVALID_EVENT"
        found = {**rejected.event, "organization_id": str(organization.id)}
        assert staff.replay(rejected.id, found) == Replay("accepted")
    assert staff.replay(ours.id, event("ours")) == Replay("accepted")
    assert {row[0] for row in recorded(superuser, organization)} == {"x", "y", "z", "ours"}
    assert recorded(superuser, other) == []


def test_an_organization_that_is_chosen_hides_those_of_others(
    shared_database: Database, sidecar: Connection, staff: Staff, organization: Organization,
    make_organization: MakeOrganization, source: str,
) -> None:  # fmt: skip
    ingest(sidecar, [event("a", quantity=-1)], organization.id, source=source)
    [rejected] = staff.rejected(source)
    with shared_database.connect("authenticator") as connection:
        elsewhere = Staff(connection, make_organization(shared_database))
        for resolve in (elsewhere.replay, elsewhere.dismiss):
            with pytest.raises(psycopg.Error) as refused:
                resolve(rejected.id)
            assert code_of(refused) == "REJECTED_EVENT_NOT_FOUND"
        assert Staff(connection, organization).replay(rejected.id, event("a")) == Replay("accepted")


def cloud_event(key: str, source: str | None, organization: Organization, **rest: object) -> Event:
    made = {"specversion": "1.0", "id": key, "type": "scan", "subject": organization.slug, **rest}
    return made if source is None else {**made, "source": source}


def test_cloud_events_are_mended_as_such_or_as_ours(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    def send(sent: Event) -> Rejected:
        sidecar.execute(
            "select metering.receive_events(%s, null, 'api', 'reject', null, 'cloudevents')", [json.dumps(sent)]
        )
        return next(row for row in staff.rejected(str(sent.get("source", ""))) if row.event == sent)

    as_such, as_ours = (send(cloud_event(key, source, organization, data={"quantity": -1})) for key in ("a", "b"))
    elsewhere = cloud_event("a", "https://elsewhere.example", organization)
    with pytest.raises(psycopg.Error) as refused:
        staff.replay(as_such.id, elsewhere)
    assert code_of(refused) == "INVALID_EVENT"
    assert staff.replay(as_such.id, cloud_event("a", source, organization)) == Replay("accepted")
    assert staff.replay(as_ours.id, event("b", name="scan")) == Replay("accepted")

    # What named no source, or one that is not its to name, says another one, or becomes an event of ours.
    unnamed, claimed = send(cloud_event("c", None, organization)), send(cloud_event("d", "gateway", organization))
    assert staff.replay(claimed.id).code == "INVALID_EVENT"
    assert staff.replay(unnamed.id, cloud_event("c", source, organization)) == Replay("accepted")
    assert staff.replay(claimed.id, event("d", name="scan", organization_id=str(organization.id))) == Replay("accepted")
    assert [(row[0], row[1]) for row in recorded(superuser, organization)] == [
        ("a", source), ("b", source), ("c", source), ("d", "api"),
    ]  # fmt: skip


def test_what_the_gateway_sent_is_never_late(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization
) -> None:
    at, key = moment(1, days=3), str(uuid4())
    finalize(superuser, organization.id, month(1))
    sidecar.execute(
        "select metering.record_rejection('gateway', %s, 'INVALID_EVENT', 'spoiled')",
        [json.dumps(event(key, at, organization_id=str(organization.id)))],
    )
    [rejected] = [row for row in staff.rejected("gateway") if row.event["id"] == key]
    assert staff.replay(rejected.id) == Replay("accepted")
    assert recorded(superuser, organization) == [(key, "gateway", "adjustment", 1, at)]


def test_replays_at_once_make_one_event(
    shared_database: Database, sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization,
    source: str,
) -> None:  # fmt: skip
    """Each with an id of its own, so that no key would tell."""

    def replay(connection: Connection, rejected: UUID, key: str) -> str:
        try:
            return Staff(connection).replay(rejected, event(key)).outcome
        except psycopg.Error as error:
            return str(error).partition(":")[0]

    for number in range(ROUNDS):
        ingest(sidecar, [event(f"wrong-{number}", quantity=-1)], organization.id, source=source)
        rejected = staff.rejected(source)[-1].id
        outcomes = race(
            shared_database,
            [
                lambda connection, rejected=rejected, key=f"{number}-{who}": replay(connection, rejected, key)  # type: ignore[misc]
                for who in range(6)
            ],
            role="authenticator",
        )
        assert sorted(outcomes) == ["REJECTED_EVENT_RESOLVED"] * 5 + ["accepted"]
        assert len(recorded(superuser, organization)) == number + 1


def test_a_dismissed_one_stays_as_it_is(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    ingest(sidecar, [event("a", quantity=-1)], organization.id, source=source)
    [rejected] = staff.rejected(source)
    dismissed = staff.dismiss(rejected.id, "A test of theirs")
    assert (dismissed.id, dismissed.code, dismissed.resolution) == (rejected.id, "INVALID_EVENT", "dismissed")
    assert recorded(superuser, organization) == []
    with pytest.raises(psycopg.Error) as refused:
        staff.replay(rejected.id, event("a"))
    assert code_of(refused) == "REJECTED_EVENT_RESOLVED"
    with pytest.raises(psycopg.Error) as unknown:
        staff.dismiss(uuid4())
    assert code_of(unknown) == "REJECTED_EVENT_NOT_FOUND"


def test_what_became_of_it_is_in_the_audit_log(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    ingest(sidecar, [event("a", quantity=-1), event("b", quantity=-1)], organization.id, source=source)
    ingest(sidecar, [event("c", organization_id="nobody's")], source=source)
    so_far = {chain: length(superuser, chain) for chain in (organization.id, PLATFORM)}
    by_id = {rejected.event["id"]: rejected for rejected in staff.rejected(source)}
    staff.replay(by_id["a"].id)
    staff.replay(by_id["a"].id, event("a"))
    staff.dismiss(by_id["b"].id, "Ann's test")
    staff.dismiss(by_id["c"].id)

    replayed, dismissed = entries(superuser, organization.id, so_far[organization.id])
    assert (replayed.action, replayed.target_id) == ("rejected_event.replayed", str(by_id["a"].id))
    assert replayed.after is not None and replayed.after | {"outcome": "accepted", "mended": True} == replayed.after
    assert dismissed.after == {"reason": "Ann's test"}
    assert (dismissed.action, dismissed.actor_type) == ("rejected_event.dismissed", "platform_admin")
    assert value(superuser, "select after from audit.log where id = %s", dismissed.id) == {}, "it can be erased"
    [unknown] = entries(superuser, PLATFORM, so_far[PLATFORM])
    assert unknown.target_id == str(by_id["c"].id)


def test_nobody_else_sees_or_resolves_them(
    shared_database: Database, sidecar: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    ingest(sidecar, [event("a", quantity=-1)], organization.id, source=source)
    [rejected] = staff.rejected(source)
    with shared_database.connect("authenticator") as connection:
        for caller in (
            *(Caller("member", member.subject) for member in organization.members.values()),
            Caller("service", "backend", str(organization.id)),
        ):
            for call in ("replay_rejected_event", "dismiss_rejected_event"):
                with request(connection, caller), pytest.raises(psycopg.Error) as refused:
                    connection.execute(f"select api.{call}(%s)", [rejected.id])
                assert code_of(refused) == "ROLE_REQUIRED"
            with request(connection, caller), pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select 1 from api.rejected_events")


def test_old_times_are_not_repaired_for_staff(
    sidecar: Connection, superuser: Connection, staff: Staff, organization: Organization, source: str
) -> None:
    """A late event may be counted now; one of no sane time is a mistake, which staff can mend."""
    ancient = event("a", moment(0) - timedelta(days=6 * 365))
    ingest(sidecar, [ancient], organization.id, source=source)
    [rejected] = staff.rejected(source)
    assert staff.replay(rejected.id, late="adjust").code == "INVALID_EVENT"
    assert recorded(superuser, organization) == []
