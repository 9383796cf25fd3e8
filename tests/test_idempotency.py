"""The same (organization, source, id) makes one event, for ever, whatever happens around it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.usage import Answer, Connection, Event, event, finalize, ingest, moment, month, race, value

WRITERS = 16


def stored(connection: Connection, organization: Organization) -> list[tuple[str, str]]:
    return [
        (source, key)
        for source, key in connection.execute(
            "select source, idempotency_key from metering.usage_events where organization_id = %s order by 1, 2",
            [organization.id],
        )
    ]


def test_sixteen_writers_with_overlapping_shuffled_batches(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """Each id is there once and was accepted once; nobody deadlocks, and no event goes without an answer."""
    organization = make_organization(shared_database)
    random = Random(2026)
    sent: set[str] = set()
    accepted = 0

    def writer(batches: list[list[Event]]) -> Callable[[Connection], list[Answer]]:
        return lambda connection: [ingest(connection, batch, organization.id) for batch in batches]

    for number in range(4):
        # Most ids of a round are new and all writers have most of them; a few come from the rounds before.
        ids = [f"{number}-{index}" for index in range(800)] + random.sample(sorted(sent), min(len(sent), 20))
        plan = [
            [
                [
                    event(key, moment(1, seconds=random.randrange(86_400 * 28)) if random.random() < 0.7 else None)
                    for key in random.sample(ids, 600)  # long enough for two inserts to overlap
                ]
                for _ in range(2)
            ]
            for _ in range(WRITERS)
        ]
        sent |= {item["id"] for batches in plan for batch in batches for item in batch}
        answers = race(shared_database, [writer(batches) for batches in plan])
        for batches, answered in zip(plan, answers, strict=True):
            assert [answer.answered for answer in answered] == [len(batch) for batch in batches]
            assert not any(answer.conflicts or answer.rejected for answer in answered)
            accepted += sum(answer.accepted for answer in answered)

    with shared_database.connect() as connection:
        assert stored(connection, organization) == sorted(("api", key) for key in sent)
        assert accepted == len(sent)
        assert value(
            connection, "select count(*) from metering.event_keys where organization_id = %s", organization.id
        ) == len(sent)


def test_of_two_writers_with_different_facts_one_wins_and_the_other_is_told(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """The second one waits for the first: what it learns then is a conflict, not a duplicate and not a new event."""
    organization = make_organization(shared_database)
    for number in range(10):
        answers = race(
            shared_database,
            [
                lambda connection, quantity=quantity, number=number: ingest(  # type: ignore[misc]
                    connection, [event(f"same-{number}", quantity=quantity)], organization.id
                )
                for quantity in range(1, 9)
            ],
        )
        assert sum(answer.accepted for answer in answers) == 1
        assert sum(len(answer.conflicts) for answer in answers) == 7


def test_a_batch_that_is_mostly_new_names_only_what_is_not(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database)
    with shared_database.connect("sidecar") as connection:
        ingest(connection, [event("old", quantity=3)], organization.id)
        batch = [event(f"new-{index}") for index in range(500)]
        batch[250:250] = [event("old", quantity=3), event("old", quantity=4)]
        answer = ingest(connection, batch, organization.id)
    assert (answer.accepted, answer.duplicates) == (500, 1)
    assert [(conflict.id, conflict.code) for conflict in answer.conflicts] == [("old", "IDEMPOTENCY_CONFLICT")]
    assert answer.rejected == ()


def test_twice_in_one_batch_is_one_event_and_the_first_wins(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database)
    with shared_database.connect("sidecar") as connection:
        answer = ingest(
            connection,
            [event("a", quantity=5), event("b"), event("a", quantity=5), event("a", quantity=6)],
            organization.id,
        )
    assert (answer.accepted, answer.duplicates, len(answer.conflicts), answer.rejected) == (2, 1, 1, ())
    with shared_database.connect() as connection:
        assert (
            value(
                connection,
                "select quantity from metering.usage_events where organization_id = %s and idempotency_key = 'a'",
                organization.id,
            )
            == 5
        )


def test_the_key_is_organization_and_source_and_id(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    one, two = make_organization(shared_database), make_organization(shared_database)
    with shared_database.connect("sidecar") as connection:
        assert ingest(connection, [event("same")], one.id).accepted == 1
        assert ingest(connection, [event("same")], one.id, source="https://other.example/app").accepted == 1
        assert ingest(connection, [event("same")], two.id).accepted == 1
        both = [event("both", organization_id=str(organization.id)) for organization in (one, two)]
        assert ingest(connection, both).accepted == 2
        # The id of the organization may be written in capitals: it is the same organization.
        again = [event("both", organization_id=str(one.id).upper())]
        assert ingest(connection, again).duplicates == 1


@pytest.mark.parametrize(("first", "second"), [(("a", "bc"), ("ab", "c")), (("a1:", "b"), ("a", "1:b"))])
def test_parts_of_the_key_do_not_run_into_each_other(
    shared_database: Database, make_organization: MakeOrganization, first: tuple[str, str], second: tuple[str, str]
) -> None:
    organization = make_organization(shared_database)
    with shared_database.connect("sidecar") as connection:
        for source, key in (first, second):
            assert ingest(connection, [event(key)], organization.id, source=source).accepted == 1


@pytest.mark.parametrize(
    "changed",
    [{"event": "doc.upload"}, {"quantity": 2}, {"resource_id": "other"}, {"resource_id": None}, {"quantity": 1.001}],
    ids=str,
)
def test_a_conflict_is_named_and_kept_and_the_first_one_counts(
    shared_database: Database, make_organization: MakeOrganization, changed: dict[str, Any]
) -> None:
    organization = make_organization(shared_database)
    first = event("a", resource_id="doc-1")
    other = {**first, **changed}
    with shared_database.connect("sidecar") as connection:
        ingest(connection, [first], organization.id)
        answer = ingest(connection, [other], organization.id)
    assert (answer.accepted, answer.duplicates, answer.rejected) == (0, 0, ())
    assert [(conflict.id, conflict.code) for conflict in answer.conflicts] == [("a", "IDEMPOTENCY_CONFLICT")]
    with shared_database.connect() as connection:
        assert connection.execute(
            "select event_name, quantity, resource_id from metering.usage_events where organization_id = %s",
            [organization.id],
        ).fetchall() == [("api.request", 1, "doc-1")]
        assert connection.execute(
            "select source, code, event from metering.rejected_events where organization_id = %s", [organization.id]
        ).fetchall() == [("api", "IDEMPOTENCY_CONFLICT", other)]


def test_the_same_fact_written_otherwise_is_a_duplicate(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """Numbers are compared by value; user, unit, dimensions and request do not make another fact."""
    organization = make_organization(shared_database)
    ways = ["1", "1.0", "1.000", "1e0", "10e-1"]
    with shared_database.connect("sidecar") as connection:
        answers = [
            ingest(connection, f'[{{"id": "a", "event": "e", "quantity": {way}, "user_id": "{way}"}}]', organization.id)
            for way in ways
        ]
    assert [(answer.accepted, answer.duplicates) for answer in answers] == [(1, 0)] + [(0, 1)] * 4


def test_a_rejected_event_uses_up_no_key(shared_database: Database, make_organization: MakeOrganization) -> None:
    organization = make_organization(shared_database)
    with shared_database.connect("sidecar") as connection:
        for broken in (event("a", quantity=-1), event("a", name="with space"), event("a", unit=5)):
            assert [refusal.code for refusal in ingest(connection, [broken], organization.id).rejected] == [
                "INVALID_EVENT"
            ]
        assert ingest(connection, [event("a")], organization.id).accepted == 1
        # Also in one batch: the broken copy comes first.
        answer = ingest(connection, [event("b", quantity=-1), event("b")], organization.id)
        assert (answer.accepted, len(answer.rejected)) == (1, 1)


def test_an_event_refused_for_its_period_uses_up_no_key(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database)
    with shared_database.connect() as connection:
        finalize(connection, organization.id, month(1))
        refused = ingest(connection, [event("a", moment(1, days=3))], organization.id)
        assert [refusal.code for refusal in refused.rejected] == ["BILLING_PERIOD_LOCKED"]
        assert ingest(connection, [event("a", moment(0, minutes=1))], organization.id).accepted == 1


def test_in_one_batch_too_an_event_refused_for_its_period_uses_up_no_key(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """The copy that can be accepted is, wherever in the batch it stands."""
    organization = make_organization(shared_database)
    locked, welcome = moment(1, days=3), moment(0, minutes=1)
    with shared_database.connect() as connection:
        finalize(connection, organization.id, month(1))
        for key, times in {"a": (locked, welcome), "b": (welcome, locked)}.items():
            answer = ingest(connection, [event(key, at) for at in times], organization.id)
            assert (answer.accepted, answer.answered) == (1, 2)
        assert stored(connection, organization) == [("api", "a"), ("api", "b")]


@pytest.mark.parametrize("late", ["reject", "adjust"])
def test_a_retry_after_its_period_was_closed_is_a_duplicate(
    shared_database: Database, make_organization: MakeOrganization, late: str
) -> None:
    """Whoever lost the answer and asks again must not be told to correct what was counted all along."""
    organization = make_organization(shared_database)
    batch = [event("a", moment(1, days=3)), event("b", moment(0, minutes=1))]
    with shared_database.connect() as connection:
        assert ingest(connection, batch, organization.id, late=late).accepted == 2
        finalize(connection, organization.id, month(1))
        retries = [
            batch,
            [event("b", moment(1, days=3)), event("a")],  # b now claims the closed period, a none
            [event("a", moment(2, days=3)), event("b", moment(7, days=1))],  # months that nobody has written to
        ]
        for retry in retries:
            answer = ingest(connection, retry, organization.id, late=late)
            assert (answer.duplicates, answer.answered) == (2, 2)
        conflict = ingest(connection, [event("a", moment(1, days=3), quantity=9)], organization.id, late=late)
        assert [refusal.code for refusal in conflict.conflicts] == ["IDEMPOTENCY_CONFLICT"]
        assert stored(connection, organization) == [("api", "a"), ("api", "b")]


def test_an_aborted_transaction_leaves_the_key_free(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database)
    with shared_database.connect("sidecar", autocommit=False) as connection:
        assert ingest(connection, [event("a")], organization.id).accepted == 1
        connection.rollback()
        assert ingest(connection, [event("a")], organization.id).accepted == 1


def test_a_writer_waits_for_the_one_who_has_the_key_and_takes_over_when_that_one_fails(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """A duplicate is only answered for an event that is really there."""
    organization = make_organization(shared_database)
    with shared_database.connect("sidecar", autocommit=False) as first, shared_database.connect("sidecar") as second:
        ingest(first, [event("a")], organization.id)
        second.execute("set lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            ingest(second, [event("a")], organization.id)
        first.rollback()
        assert ingest(second, [event("a")], organization.id).accepted == 1
        assert ingest(first, [event("a")], organization.id).duplicates == 1
