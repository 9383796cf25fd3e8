"""What operations weigh: the organization's own weight, else the one for all, at the time of the event; and what is
recorded keeps it for ever.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.meters import by_member, by_staff
from tests.sql_requests import Caller, request
from tests.usage import Connection, event, ingest, race, value

NEXT = count(1)
YEAR = timedelta(days=365)

# Some of those that a project tool has, as it was agreed on.
SEEDED = {
    "task_create": 1,
    "comment_create": 1,
    "subtask_create": 1,
    "attachment_upload": 2,
    "space_create": 2,
    "space_delete": 2,
    "ai_embedding": 5,
    "ai_completion": 10,
}


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def operation() -> str:
    """One that no other test has."""
    return f"operation_{next(NEXT)}"


def set_weight(api: Connection, operation: str, weight: object, **rest: object) -> None:
    by_staff(api, "set_operation_weight", operation=operation, weight=weight, **rest)


def weight_of(
    superuser: Connection, organization: Organization, operation: str, at: datetime | None = None
) -> Decimal | None:
    query = "select weight from metering.weight_of(%s, %s, coalesce(%s, clock_timestamp()))"
    found: Decimal | None = value(superuser, query, organization.id, operation, at)
    return found


def weighed(superuser: Connection, organization: Organization) -> dict[str, Decimal | None]:
    query = "select idempotency_key, weighted_units from metering.usage_events where organization_id = %s"
    return dict(superuser.execute(query, [organization.id]).fetchall())


def test_the_operations_of_a_project_tool_have_weights(superuser: Connection, organization: Organization) -> None:
    seeded: dict[str, Decimal] = dict(
        superuser.execute(
            "select operation, weight from metering.operation_weights"
            " where organization_id is null and effective_from = '2000-01-01Z'"
        ).fetchall()
    )
    assert len(seeded) >= 50
    assert seeded.items() >= SEEDED.items()
    assert weight_of(superuser, organization, "api.request") is None


def test_the_latest_one_counts_and_ones_own_wins(
    api: Connection,
    superuser: Connection,
    organization: Organization,
    make_organization: MakeOrganization,
    operation: str,
) -> None:
    now = datetime.now(UTC)
    set_weight(api, operation, 3, effective_from=now - YEAR)
    set_weight(api, operation, 4)
    set_weight(api, operation, 5, effective_from=now + YEAR)
    assert weight_of(superuser, organization, operation, now - 2 * YEAR) is None
    assert weight_of(superuser, organization, operation, now - YEAR) == 3
    assert weight_of(superuser, organization, operation) == 4
    assert weight_of(superuser, organization, operation, now + YEAR) == 5

    set_weight(api, operation, Decimal("0.5"), organization_id=organization.id)
    assert weight_of(superuser, organization, operation, now - YEAR) == 3
    assert weight_of(superuser, organization, operation) == Decimal("0.5")
    assert weight_of(superuser, organization, operation, now + YEAR) == Decimal("0.5"), "until another one of its own"


def test_an_event_keeps_what_it_weighed_when_it_happened(
    api: Connection, sidecar: Connection, superuser: Connection, organization: Organization, operation: str
) -> None:
    ahead = datetime.now(UTC) + timedelta(minutes=3)

    def send(key: str, at: datetime | None = None, **rest: object) -> None:
        assert ingest(sidecar, [event(key, at, name=operation, quantity=4, **rest)], organization.id).accepted == 1

    send("before any")
    set_weight(api, operation, 2)
    send("two")
    set_weight(api, operation, 3, effective_from=ahead)
    send("still two")
    send("three", ahead + timedelta(seconds=1))
    set_weight(api, operation, 0, organization_id=organization.id)
    send("nothing")
    send("nothing, ahead", ahead + timedelta(seconds=1))
    assert weighed(superuser, organization) == {
        "before any": None,
        "two": 8,
        "still two": 8,
        "three": 12,
        "nothing": 0,
        "nothing, ahead": 0,
    }


def test_compute_units_are_what_all_operations_weigh(
    api: Connection, sidecar: Connection, organization: Organization
) -> None:
    sent = {"ai_completion": 3, "task_create": 2, "api.request": 1}
    ingest(sidecar, [event(name, name=name, quantity=quantity) for name, quantity in sent.items()], organization.id)
    rows = by_member(api, organization, "usage_summary", filter={"meter": "compute.units"})
    assert [(row["events"], row["quantity"], row["unit"]) for row in rows] == [(2, 32, "unit")]


def test_the_past_is_only_for_an_operation_that_has_no_weight_yet(
    api: Connection, superuser: Connection, organization: Organization, operation: str
) -> None:
    long_ago = datetime.now(UTC) - YEAR
    set_weight(api, operation, 3, organization_id=organization.id, effective_from=long_ago)
    set_weight(api, operation, 4, effective_from=long_ago)
    for organization_id in (None, organization.id):
        with pytest.raises(psycopg.Error, match=r"^INVALID_WEIGHT: .* has a weight already"):
            set_weight(api, operation, 5, organization_id=organization_id, effective_from=long_ago + timedelta(days=1))
    assert weight_of(superuser, organization, operation) == 3


def test_one_that_is_still_to_come_is_put_right(
    api: Connection, superuser: Connection, organization: Organization, operation: str
) -> None:
    ahead = datetime.now(UTC) + YEAR
    for weight in (30, 3):
        set_weight(api, operation, weight, effective_from=ahead)
    assert weight_of(superuser, organization, operation, ahead) == 3
    assert value(superuser, "select count(*) from metering.operation_weights where operation = %s", operation) == 1


def test_several_at_once_are_set_one_after_the_other(
    shared_database: Database, superuser: Connection, operation: str
) -> None:
    """Of those that reach back only the first one is."""
    long_ago = datetime.now(UTC) - YEAR

    def set_some(connection: Connection, number: int) -> bool:
        set_weight(connection, operation, number)
        try:
            set_weight(connection, f"{operation}_past", number, effective_from=long_ago + timedelta(seconds=number))
        except psycopg.Error as error:
            assert "has a weight already" in str(error)
            return False
        return True

    actions = [lambda connection, number=number: set_some(connection, number) for number in range(6)]
    assert sum(race(shared_database, actions, role="authenticator")) == 1
    assert value(superuser, "select count(*) from metering.operation_weights where operation = %s", operation) == 6


@pytest.mark.parametrize("weight", [-1, Decimal("NaN"), Decimal("Infinity"), 10**9, Decimal("0.1234567891"), None])
def test_what_is_no_weight_is_refused(api: Connection, operation: str, weight: object) -> None:
    with pytest.raises(psycopg.Error, match=r"^INVALID_WEIGHT: a weight is"):
        set_weight(api, operation, weight)


def test_what_is_no_operation_no_organization_and_no_moment_is_refused(api: Connection, operation: str) -> None:
    with pytest.raises(psycopg.Error, match=r"^INVALID_WEIGHT: an operation is"):
        set_weight(api, "has blanks", 1)
    with pytest.raises(psycopg.Error, match=r"^INVALID_WEIGHT: effective_from"):
        set_weight(api, operation, 1, effective_from="infinity")
    with pytest.raises(psycopg.Error, match=r"^ORGANIZATION_NOT_FOUND: "):
        set_weight(api, operation, 1, organization_id="019a6d0e-7c1a-7b52-9a51-0d7a3c5e9f10")


def test_members_read_those_for_all_and_their_own(
    api: Connection, shared_database: Database, make_organization: MakeOrganization, operation: str
) -> None:
    mine, other = make_organization(shared_database), make_organization(shared_database)
    set_weight(api, operation, 1)
    for organization, weight in ((mine, 2), (other, 3)):
        set_weight(api, operation, weight, organization_id=organization.id)
    query = "select array_agg(weight order by weight) from api.operation_weights where operation = %s"
    for caller, seen in (
        (Caller("member", mine["viewer"].subject), [1, 2]),
        (Caller("member", other["billing"].subject), [1, 3]),
        (Caller("platform_admin", "staff"), [1, 2, 3]),
    ):
        with request(api, caller):
            assert value(api, query, operation) == seen


def test_asking_for_a_weight_calls_no_function(superuser: Connection) -> None:
    """It is asked for each event that is recorded."""
    with superuser.transaction(force_rollback=True):
        # With as few rows as there are in a test, reading them all would do as well.
        superuser.execute("set local enable_seqscan = off; set local enable_sort = off")
        plan = superuser.execute(
            """
            explain select w.weight from metering.usage_events e
            cross join lateral metering.weight_of(e.organization_id, e.event_name, e.occurred_at) w
            """
        ).fetchall()
    assert "weight_of" not in str(plan)
    assert "operation_weights_organization_id_operation_effective_from_key" in str(plan)
