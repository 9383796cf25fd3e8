"""Small requests share a transaction, and each is answered as if it had come alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.usage import Connection, event, race, value

ONE = """
  insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes, revoked_at)
  values (
    'provider', %s, 'k', left(replace(gen_random_uuid()::text, '-', ''), 12), sha256(gen_random_uuid()::text::bytea),
    '{events:write}', case when %s then now() end
  )
  returning id
"""


@dataclass(frozen=True)
class Request:
    body: str
    organization: UUID | None = None
    key: UUID | None = None
    format: str = "events"
    late: str = "reject"


@pytest.fixture(scope="module")
def organizations(shared_database: Database, make_organization: MakeOrganization) -> list[Organization]:
    return [make_organization(shared_database, roles=("owner",)) for _ in range(2)]


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made, made.transaction(force_rollback=True):
        yield made


def send(connection: Connection, requests: Sequence[Request]) -> list[Any]:
    """The outcome of each, or the SQLSTATE and the message of its refusal."""
    rows = connection.execute(
        "select position, outcome, error_state, error_message from metering.receive_group(%s, %s, %s, %s, %s)",
        [
            [one.body for one in requests],
            [one.organization for one in requests],
            [one.key for one in requests],
            [one.format for one in requests],
            [one.late for one in requests],
        ],
    ).fetchall()
    assert [row[0] for row in rows] == list(range(1, len(requests) + 1))
    return [outcome if state is None else (state, message) for _, outcome, state, message in rows]


def counts(outcome: Any) -> tuple[int, int, int, int]:
    return outcome["accepted"], outcome["duplicates"], len(outcome["conflicts"]), len(outcome["rejected"])


def test_neighbours_cost_each_other_nothing(connection: Connection, organizations: list[Organization]) -> None:
    mine, other = (one.id for one in organizations)
    bound, revoked = (value(connection, ONE, mine, gone) for gone in (False, True))
    good = json.dumps([event("a"), event("b")])
    answers = send(
        connection,
        [
            Request(good, mine),
            Request("{", mine),
            Request("5", mine),
            Request(good, mine),
            Request(json.dumps([event("a", quantity=9), {"id": "bad"}, event("c")]), mine),
            Request(good, other),
            Request(good, None, bound),
            Request(good, other, bound),
            Request(good, mine, revoked),
            Request(good, mine, uuid4()),
            Request("[]", mine),
            Request(json.dumps(event("d")), mine),
            Request(
                json.dumps({"specversion": "1.0", "id": "a", "source": "/s", "type": "x"}), mine, format="cloudevents"
            ),
            Request("\n".join(json.dumps(event(key)) for key in "de"), mine, format="ndjson"),
        ],
    )
    assert [counts(one) if isinstance(one, dict) else one[0] for one in answers] == [
        (2, 0, 0, 0),
        "22P02",
        "PT400",
        (0, 2, 0, 0),
        (1, 0, 1, 1),
        (2, 0, 0, 0),
        (0, 2, 0, 0),
        "PT403",
        "PT401",
        "PT401",
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (1, 0, 0, 0),
        (1, 1, 0, 0),
    ]
    assert [one["index"] for one in (*answers[4]["conflicts"], *answers[4]["rejected"])] == [0, 1]
    assert answers[4]["rejected"][0]["message"].startswith("event 1: ")
    assert value(connection, "select count(*) from metering.usage_events") == 8
    kept = connection.execute("select event ->> 'id' from metering.rejected_events order by 1").fetchall()
    assert kept == [("a",), ("bad",)]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 1)), max_size=4), min_size=1, max_size=6
    )
)
def test_a_group_is_answered_as_one_after_the_other(
    connection: Connection, organizations: list[Organization], batches: list[list[tuple[str, int]]]
) -> None:
    bodies = [json.dumps([event(key, quantity=quantity) for key, quantity in batch]) for batch in batches]
    mine = organizations[0].id
    alone, together = [], []
    with connection.transaction(force_rollback=True):
        query = "select metering.receive_events(%s, %s, 'api', 'reject')"
        alone = [value(connection, query, body, mine) for body in bodies]
    with connection.transaction(force_rollback=True):
        together = send(connection, [Request(body, mine) for body in bodies])
    assert together == alone


def test_groups_at_the_same_moment_count_each_event_once(
    shared_database: Database, organizations: list[Organization]
) -> None:
    """Sixteen writers, whose groups hold the same events in other orders."""
    mine = organizations[1].id
    writers, keys = 16, [f"race-{number}" for number in range(40)]

    def group(writer: int) -> list[Request]:
        turned = keys[writer:] + keys[:writer]
        return [Request(json.dumps([event(key)]), mine) for key in (turned if writer % 2 else turned[::-1])]

    answers = race(
        shared_database,
        [lambda connection, number=number: send(connection, group(number)) for number in range(writers)],  # type: ignore[misc]
    )
    accepted = sum(one["accepted"] for answer in answers for one in answer)
    duplicates = sum(one["duplicates"] for answer in answers for one in answer)
    assert (accepted, duplicates) == (len(keys), len(keys) * (writers - 1))
    with shared_database.connect() as connection:
        stored = (
            "select count(*) from metering.usage_events where organization_id = %s and idempotency_key like 'race-%%'"
        )
        assert value(connection, stored, mine) == len(keys)
