"""Rollups at their edges: a void finds what it takes back, and odd events are read alike before and after."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all, void
from tests.usage import Connection, event, ingest, value

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DAY = TODAY - timedelta(days=1)
GIB = 1024**3

Found = list[tuple[Any, ...]]


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database).id


def make_meter(superuser: Connection, name: str, aggregation: str, **columns: object) -> None:
    """A meter of that code for the events of that name."""
    everything = {"value": "quantity", "group_by": [], "max_groups": 1000} | columns
    superuser.execute(
        "insert into metering.meters (code, event_name, aggregation, value, group_by, max_groups, unit, description)"
        " values (%(name)s, %(name)s, %(aggregation)s, %(value)s, %(group_by)s, %(max_groups)s, 'unit', 'test')",
        {"name": name, "aggregation": aggregation} | everything,
    )


def used(connection: Connection, organization: UUID, meter: str, group_by: str | None = None) -> Found:
    return connection.execute(
        """
        select groups ->> %s::text, events, quantity
        from metering.measure(%s, %s, %s, jsonb_build_object('meter', %s::text))
        order by 1
        """,
        [group_by, organization, [DAY, TODAY], [group_by] if group_by else [], meter],
    ).fetchall()


def test_the_void_of_a_folded_group_finds_it_when_the_bound_was_raised(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    make_meter(superuser, "few", "max", group_by=["k"], max_groups=1)

    def send(key: str, k: str, quantity: int, at: datetime) -> None:
        ingest(sidecar, [event(key, at, name="few", quantity=quantity, dimensions={"k": k})], organization)

    send("1", "a", 1, DAY)
    roll_up_all(sidecar)
    send("2", "b", 9, DAY)
    roll_up_all(sidecar)
    superuser.execute("update metering.meters set max_groups = 10 where code = 'few'")
    send("3", "b", 2, datetime.now(UTC))
    void(sidecar, organization, "2")
    roll_up_all(sidecar)
    assert used(superuser, organization, "few") == [(None, 1, 1)]
    assert used(superuser, organization, "few", "k") == [("a", 1, 1), ("other", 0, 0)]


def test_a_group_that_is_called_other_takes_no_place(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    make_meter(superuser, "others", "max", group_by=["k"], max_groups=1)
    for key, k, quantity in (("1", "other", 1), ("2", "z", 9), ("3", "z", 2)):
        ingest(
            sidecar, [event(f"others-{key}", DAY, name="others", quantity=quantity, dimensions={"k": k})], organization
        )
        if key != "1":
            roll_up_all(sidecar)
    void(sidecar, organization, "others-2")
    roll_up_all(sidecar)
    assert used(superuser, organization, "others", "k") == [("other", 1, 1), ("z", 1, 2)]


def test_a_void_is_never_an_older_transaction_than_its_event(
    shared_database: Database, superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    make_meter(superuser, "older", "max")
    ingest(sidecar, [event("older-1", DAY, name="older", quantity=1)], organization)
    roll_up_all(sidecar)
    with shared_database.connect("sidecar", autocommit=False) as correcting:
        ingest(correcting, [event("older-own", DAY, name="older", quantity=7)], organization)
        ingest(sidecar, [event("older-2", DAY, name="older", quantity=9)], organization)
        void(correcting, organization, "older-own")
        with (
            pytest.raises(psycopg.errors.SerializationFailure, match="while this transaction"),
            correcting.transaction(),
        ):
            void(correcting, organization, "older-2")
    void(sidecar, organization, "older-2")
    for _ in range(4):
        assert used(superuser, organization, "older") == [(None, 1, 1)]
        sidecar.execute("select metering.roll_up(1)")


def test_an_event_without_a_value_is_counted_alike_before_and_after(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    make_meter(superuser, "level", "weighted_sum", value="dimensions.n")
    ingest(
        sidecar,
        [event("level-1", DAY, name="level", dimensions={"n": 5}), event("level-2", DAY, name="level")],
        organization,
    )
    assert used(superuser, organization, "level") == [(None, 2, 120)]
    roll_up_all(sidecar)
    assert used(superuser, organization, "level") == [(None, 2, 120)]


def test_what_a_meter_of_levels_does_not_count_is_no_level_of_it(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    make_meter(superuser, "tank", "weighted_sum")
    superuser.execute("update metering.meters set deleted_at = now() where code = 'tank'")
    ingest(sidecar, [event("tank-1", DAY, name="tank", quantity=5)], organization)
    # The event by its name, and nothing of the meter.
    assert used(superuser, organization, "tank") == [(None, 1, 5)]
    roll_up_all(sidecar)
    assert used(superuser, organization, "tank") == [(None, 1, 5)]


def test_what_a_fast_clock_stored_takes_nothing_away(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    stored = "select coalesce(sum(quantity), 0) from metering.measure(%s, %s, '{}', '{\"meter\": \"storage.bytes\"}')"
    until = datetime.now(UTC) + timedelta(days=1)
    ingest(sidecar, [event("stored", DAY, name="storage.bytes", quantity=GIB)], organization)
    before = value(superuser, stored, organization, [DAY, until])
    ahead = datetime.now(UTC) + timedelta(minutes=4)
    ingest(sidecar, [event("ahead", ahead, name="storage.bytes", quantity=1000 * GIB)], organization)
    # In the four minutes it would be 66 GiB-hours less.
    assert value(superuser, stored, organization, [DAY, until]) >= before
    roll_up_all(sidecar)
    assert value(superuser, stored, organization, [DAY, until]) >= before
    assert value(superuser, stored, organization, [DAY, TODAY]) == 24


def test_a_filter_finds_what_was_stored_long_ago_in_a_group_of_others(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    make_meter(superuser, "shelf", "weighted_sum", group_by=["k"], max_groups=1)
    long_ago = DAY - timedelta(days=200)
    for k in ("a", "b"):
        ingest(sidecar, [event(f"shelf-{k}", long_ago, name="shelf", dimensions={"k": k})], organization)
        roll_up_all(sidecar)
    only = (
        "select sum(quantity) from metering.measure(%s, %s, '{}', jsonb_build_object('k', %s::text, 'meter', 'shelf'))"
    )
    assert [value(superuser, only, organization, [DAY, TODAY], k) for k in ("a", "b")] == [24, 24]


@pytest.mark.parametrize("aggregation", ["sum", "unique"])
def test_the_groups_that_have_a_place_are_read_once_for_all_that_have_none(
    superuser: Connection, sidecar: Connection, organization: UUID, aggregation: str
) -> None:
    """Where each event has a value of its own, they would else be read for each: rollups would stand still."""
    meter = f"crowd.{aggregation}"
    reads = "user_id" if aggregation == "unique" else "quantity"
    make_meter(superuser, meter, aggregation, group_by=["k"], max_groups=50, value=reads)
    for place, number in enumerate((50, 400)):
        keys = [f"crowd-{place}-{n}" for n in range(number)]
        sent = [event(key, DAY, name=meter, user_id="ann", dimensions={"k": key}) for key in keys]
        ingest(sidecar, sent, organization)
        if place == 0:
            roll_up_all(sidecar)
    counted = used(superuser, organization, meter)
    for is_rolled_up in (False, True):
        with superuser.transaction():
            if is_rolled_up:
                answer = value(superuser, "select metering.roll_up()")
                assert (answer["events"], answer["folded"]) == (400, 400)
            else:
                groups = used(superuser, organization, meter, "k")
            read = value(
                superuser,
                "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)"
                " from pg_stat_xact_user_tables where relid = 'metering.usage_rollups'::regclass",
            )
        assert read < 5000, "less than 50 for each of 400"
    assert len(groups) == 51
    assert groups[-1][:2] == ("other", 400)
    assert used(superuser, organization, meter, "k") == groups
    assert used(superuser, organization, meter) == counted
