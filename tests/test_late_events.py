"""An event of a finalized period is refused, or recorded now as its adjustment where the sender says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.usage import Connection, event, finalize, ingest, moment, month, value

LATE = moment(1, days=3)


@pytest.fixture(scope="module")
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    """One whose last month is finalized."""
    made = make_organization(shared_database, roles=("owner",))
    with shared_database.connect() as connection:
        ingest(connection, [event("before", LATE)], made.id)
        finalize(connection, made.id, month(1))
    return made


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made, made.transaction(force_rollback=True):
        yield made


def receive(connection: Connection, body: str, organization: Organization, late: str = "reject") -> Any:
    return value(connection, "select metering.receive_events(%s, %s, 'api', %s)", body, organization.id, late)


@pytest.mark.parametrize(
    ("on_event", "on_batch", "adjusted"),
    [
        (None, None, False),
        ("adjust", None, True),
        (None, "adjust", True),
        ("reject", "adjust", False),
        ("adjust", "reject", True),
    ],
)
@pytest.mark.parametrize("holdable", [True, False], ids=["", "beside text that jsonb cannot hold"])
def test_the_event_or_the_batch_says_what_happens(
    connection: Connection,
    organization: Organization,
    on_event: str | None,
    on_batch: str | None,
    adjusted: bool,
    holdable: bool,
) -> None:
    late = event("late", LATE) | ({"late": on_event} if on_event else {})
    events = [json.dumps(late), json.dumps(event("now")), *([] if holdable else ['"\\u0000"'])]
    body = f'{{ "events": [{", ".join(events)}]' + (f', "late": "{on_batch}" }}' if on_batch else "}")
    answer = receive(connection, body, organization)
    assert answer["accepted"] == 1 + adjusted
    refused = [(one["index"], one["id"], one["code"]) for one in answer["rejected"]]
    assert refused[: len(refused) - (not holdable)] == ([] if adjusted else [(0, "late", "BILLING_PERIOD_LOCKED")])
    stored = connection.execute(
        """
        select event_type, belongs_at, abs(extract(epoch from occurred_at - clock_timestamp())) < 60
        from metering.usage_events where idempotency_key = 'late'
        """
    ).fetchall()
    assert stored == ([("adjustment", LATE, True)] if adjusted else [])
    placed = connection.execute(
        """
        select k.occurred_at = e.occurred_at from metering.event_keys k
        join metering.usage_events e on k.key = metering.event_key(e.organization_id, e.source, e.idempotency_key)
        where e.idempotency_key in ('late', 'now')
        """
    ).fetchall()
    assert placed == [(True,)] * (1 + adjusted), "where a key's event is can be looked up"


def test_the_top_of_the_body_may_say_it_first(connection: Connection, organization: Organization) -> None:
    for body in ('{"late": "adjust", "events": [%s]}', '{"late":"adjust","events":[%s, "\\u0000"]}'):
        with connection.transaction(force_rollback=True):
            assert receive(connection, body % json.dumps(event("late", LATE)), organization)["accepted"] == 1


@pytest.mark.parametrize("late", ['"never"', "5", "[]"])
def test_what_else_it_says_is_refused(connection: Connection, organization: Organization, late: str) -> None:
    with (
        pytest.raises(psycopg.Error, match='INVALID_BODY: late needs to be "reject" or "adjust"'),
        connection.transaction(),
    ):
        receive(connection, f'{{"events": [], "late": {late}}}', organization)
    answer = receive(connection, f'[{{"id": "a", "event": "x", "quantity": 1, "late": {late}}}]', organization)
    assert "late needs to be" in answer["rejected"][0]["message"]


def test_a_time_that_no_clock_gives_stays_an_error_for_the_api(
    connection: Connection, organization: Organization
) -> None:
    ahead = {**event("a", datetime.now(UTC) + timedelta(days=400)), "late": "adjust"}
    assert receive(connection, json.dumps([ahead]), organization)["rejected"][0]["message"].endswith("in the future")
    assert receive(connection, json.dumps([ahead]), organization, "adjust")["accepted"] == 1, "the gateway's clock"


def test_how_far_ahead_is_a_setting(connection: Connection, organization: Organization) -> None:
    body = json.dumps(event("ahead", datetime.now(UTC) + timedelta(minutes=30)))
    query = "select metering.receive_events(%s, %s, 'api', 'reject', null, 'events', %s) ->> 'accepted'"
    assert value(connection, query, body, organization.id, timedelta(minutes=5)) == "0"
    assert value(connection, query, body, organization.id, timedelta(hours=1)) == "1"


def test_a_retry_of_what_was_counted_before_is_a_duplicate(connection: Connection, organization: Organization) -> None:
    answer = ingest(connection, [event("before", LATE), event("before", LATE, quantity=2)], organization.id)
    assert (answer.duplicates, [one.code for one in answer.conflicts]) == (1, ["IDEMPOTENCY_CONFLICT"])


def test_attempts_are_counted_for_operations(
    connection: Connection, organization: Organization, shared_database: Database
) -> None:
    ingest(connection, [event("new")], organization.id)
    counted = "select accepted, duplicates, conflicts, locked from metering.repeated_events('1 hour') where source = %s"
    assert connection.execute(counted, ["api"]).fetchall() == []
    ingest(
        connection, [event("new"), event("new", quantity=2), event("late", LATE), event("more"), {}], organization.id
    )
    ingest(connection, [event("more")], organization.id)
    assert connection.execute(counted, ["api"]).fetchall() == [(1, 2, 1, 1)]
    connection.execute("update metering.repeated_batches set recorded_at = now() - interval '31 days'")
    connection.execute("select ops.maintain()")
    assert value(connection, "select count(*) from metering.repeated_batches") == 0
    with shared_database.connect("monitor") as monitor:
        monitor.execute(counted, ["api"])
