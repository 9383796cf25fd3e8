"""Alerts under concurrency: several sidecars fire while usage is written and rolled up, one is killed in the middle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Event, Lock
from uuid import UUID

import psycopg
import pytest

from tests.alerting import LIMIT, METER, Book, make_plan, percents, put_on_plan
from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all
from tests.sql_requests import Caller, enter
from tests.usage import Connection, event, ingest, race, value

FIRE = "select billing.fire_alerts()"
ORGANIZATIONS, WRITERS, FIRING = 5, 3, 8


@pytest.fixture
def book(
    superuser: Connection,
    sidecar: Connection,
    api: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
) -> Book:
    make_plan(superuser)
    made = make_organization(shared_database, roles=("owner",))
    put_on_plan(superuser, [made.id])
    return Book(shared_database, superuser, sidecar, api, made)


def test_many_who_fire_tell_each_threshold_once(
    book: Book, shared_database: Database, make_organization: MakeOrganization
) -> None:
    """8 fire, 3 write usage of 5 organizations, and it is rolled up all the while: 12 of a limit of 10 in the end."""
    books = [
        replace(book, organization=make_organization(shared_database, roles=("owner",))) for _ in range(ORGANIZATIONS)
    ]
    put_on_plan(book.superuser, [one.id for one in books])
    book.look()
    written, left, counting = Event(), WRITERS, Lock()

    def write(number: int) -> Callable[[Connection], None]:
        def run(connection: Connection) -> None:
            nonlocal left
            try:
                for step in range(4):
                    for one in books:
                        ingest(connection, [event(f"race-{number}-{step}", name=METER)], one.id)
            finally:
                with counting:
                    left -= 1
                    if left == 0:
                        written.set()

        return run

    def until_written(statement: str) -> Callable[[Connection], None]:
        def run(connection: Connection) -> None:
            connection.execute("set lock_timeout = '20s'")
            while not written.is_set():
                report = value(connection, statement)
                assert report.get("failed", []) == []

        return run

    actions = [write(number) for number in range(WRITERS)]
    actions += [until_written(FIRE)] * FIRING + [until_written("select metering.roll_up()")]
    race(shared_database, actions)
    book.look()
    for one in books:
        told = one.told()
        assert [(fired.what, int(fired.threshold)) for fired in told] == [(LIMIT, part) for part in (50, 80, 100)]
        assert all(fired.threshold / 10 <= fired.value <= 12 for fired in told)
        assert reached(one) == 1
    assert value(book.superuser, "select count(*) from billing.alert_queue") == 0


def reached(book: Book) -> int:
    count: int = value(
        book.superuser,
        "select count(*) from notifications.webhook_messages where organization_id = %s and type = 'quota.reached'",
        book.id,
    )
    return count


def test_one_that_is_killed_in_the_middle_leaves_it_to_the_next(book: Book, shared_database: Database) -> None:
    """Meanwhile nobody waits for it: neither who fires, nor who rolls up."""
    book.look()
    book.use(10)
    roll_up_all(book.sidecar)
    book.sidecar.execute("set lock_timeout = '1s'")
    try:
        with suppress(psycopg.OperationalError), shared_database.connect("sidecar", autocommit=False) as killed:
            assert value(killed, FIRE)["fired"] == 4
            assert value(book.sidecar, FIRE)["organizations"] == 0
            book.use(1)
            # It holds back what came after it, and is not waited for.
            assert "busy" not in value(book.sidecar, "select metering.roll_up()")
            book.superuser.execute("select pg_terminate_backend(%s)", [killed.info.backend_pid])
            killed.execute("select 1")
        assert (book.told(), reached(book)) == ([], 0)
        assert book.look() == percents(10, (50, 11), (80, 11), (100, 11))
        assert reached(book) == 1
    finally:
        book.sidecar.execute("reset lock_timeout")


def test_what_is_queued_while_somebody_looks_is_looked_at_again(book: Book, shared_database: Database) -> None:
    """Whoever looks takes away only what was there before usage was read."""
    book.look()
    book.use(4)
    roll_up_all(book.sidecar)
    with shared_database.connect("sidecar", autocommit=False) as looking:
        assert value(looking, FIRE)["organizations"] == 1
        book.use(4)
        book.change("select billing.queue_alerts(%(org)s)")
        looking.commit()
    assert book.told() == []
    assert value(book.sidecar, FIRE)["fired"] == 2
    assert book.told() == percents(10, (50, 8), (80, 8))


def test_nobody_waits_for_who_has_queued(book: Book, shared_database: Database) -> None:
    """A transaction that changes limits may stay open for long."""
    book.look()
    with shared_database.connect(autocommit=False) as long:
        long.execute("select billing.queue_alerts(%s)", [book.id])
        book.use(5)
        book.change("select billing.queue_alerts(%(org)s)")
        book.sidecar.execute("set lock_timeout = '1s'")
        assert value(book.sidecar, FIRE)["fired"] == 1
        assert value(book.sidecar, "select metering.roll_up()").get("busy") is None
        book.sidecar.execute("reset lock_timeout")


def test_many_at_once_make_no_more_alerts_than_there_may_be(book: Book, shared_database: Database) -> None:
    book.change(
        """
        insert into billing.usage_alerts (organization_id, threshold_kind, threshold)
        select %(org)s, 'absolute', n from generate_series(1, 90) n
        """
    )

    def make(threshold: int) -> Callable[[Connection], UUID | str]:
        def run(connection: Connection) -> UUID | str:
            try:
                with connection.transaction():
                    enter(connection, Caller("member", book.organization["owner"].subject, path="/rpc/any"))
                    made: UUID = value(connection, "select id from api.create_usage_alert('absolute', %s)", threshold)
                    return made
            except psycopg.Error as error:
                return str(error).partition(":")[0]

        return run

    # Four each of the same, of which one makes it and the others find it.
    made = race(shared_database, [make(1000 + number // 4) for number in range(24)], "authenticator")
    counts = Counter(made)
    refused = counts.pop("TOO_MANY_ALERTS")
    assert (len(counts), set(counts.values()), refused) == (4, {4}, 8)
    assert value(book.superuser, "select count(*) from billing.usage_alerts where organization_id = %s", book.id) == 100
