"""A hard quota is exact, however many ask at once: what succeeds comes to the limit, and no more is used than that."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import count
from threading import Barrier

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.entitlements import reserve, set_limit, used
from tests.harness import Database, Organization
from tests.usage import Connection, event, ingest, value

WRITERS = 32
KEY = count(1)


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


def ask_at_once(database: Database, role: str, act: Callable[[Connection, int], int]) -> int:
    """Each of the writers acts again and again until it has been refused twice, and then says how much it was
    granted. Returns what all of them were.
    """
    barrier = Barrier(WRITERS)

    def write(number: int) -> int:
        granted = refusals = 0
        with database.connect(role) as connection:
            barrier.wait(120)
            while refusals < 2:
                try:
                    amount = act(connection, number)
                except psycopg.Error as error:
                    assert (error.diag.message_primary or "").startswith("QUOTA_EXCEEDED: "), error
                    amount = 0
                granted += amount
                refusals += amount == 0
        return granted

    with ThreadPoolExecutor(WRITERS) as pool:
        return sum(pool.map(write, range(WRITERS)))


def upload(connection: Connection, organization: Organization) -> None:
    connection.execute("insert into app.documents (organization_id, title) values (%s, 'Deed')", [organization.id])


def test_mixed_amounts_come_to_the_limit(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    """Who asks for one gets what those who ask for more leave over: nothing is refused that would fit."""
    set_limit(superuser, organization.id, "pages", 150)

    def act(connection: Connection, number: int) -> int:
        amount = 1 + number % 4
        reserve(connection, organization.id, "pages", amount)
        return amount

    assert ask_at_once(shared_database, "postgres", act) == 150
    assert used(superuser, organization.id, "pages") == 150


def test_usage_that_is_metered_meanwhile_counts_once(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    """Half of the writers meter what they were granted at once, the others never: quotas cannot tell."""
    set_limit(superuser, organization.id, "requests", 90, meter="api.request")

    def act(connection: Connection, number: int) -> int:
        reserve(connection, organization.id, "requests")
        if number % 2:
            ingest(connection, [event(f"race-{next(KEY)}")], organization.id)
        return 1

    assert ask_at_once(shared_database, "postgres", act) == 90
    assert used(superuser, organization.id, "requests") == 90


def test_rows_of_a_metered_table_come_to_the_limit(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    """Reserved in the transaction of the insert, or not: each row counts once."""
    set_limit(superuser, organization.id, "uploads", 70, meter="doc.upload")

    def act(connection: Connection, number: int) -> int:
        with connection.transaction():
            if number % 2:
                reserve(connection, organization.id, "uploads")
            upload(connection, organization)
        return 1

    assert ask_at_once(shared_database, "postgres", act) == 70
    documents = value(superuser, "select count(*) from app.documents where organization_id = %s", organization.id)
    assert documents == used(superuser, organization.id, "uploads") == 70


def test_requests_at_the_gateway_come_to_the_limit(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    """Some of those granted are given back, and granted to somebody else."""
    set_limit(superuser, organization.id, "requests", 100, meter="api.request")
    given_back = count()

    def act(connection: Connection, number: int) -> int:
        if value(connection, "select billing.take_request(%s)", organization.id):
            return 0
        if number < 8 and next(given_back) < 40:
            connection.execute("select billing.give_back_request(%s)", [organization.id])
            return act(connection, number)
        return 1

    granted = ask_at_once(shared_database, "sidecar", act)
    # Who gives back after the others have been refused twice leaves it over.
    while value(superuser, "select billing.take_request(%s)", organization.id) is None:
        granted += 1
    assert granted == 100
    assert used(superuser, organization.id, "requests") == 100


def test_a_retry_at_the_same_moment_reserves_once(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "pages", 20)
    barrier = Barrier(WRITERS)

    def retry(number: int) -> Decimal:
        with shared_database.connect() as connection:
            barrier.wait(120)
            found: Decimal = value(
                connection,
                "select used from billing.grant_quota(%s, 'pages', 2, %s)",
                organization.id,
                f"act-{number % 10}",
            )
            return found

    with ThreadPoolExecutor(WRITERS) as pool:
        assert max(pool.map(retry, range(WRITERS))) == 20
    assert used(superuser, organization.id, "pages") == 20


def test_each_period_has_its_limit_when_one_ends_meanwhile(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "pages", 40)
    superuser.execute(
        """
        insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
        values (%s, now() - interval '20 days', clock_timestamp() + interval '1 second', 'UTC')
        """,
        [organization.id],
    )
    is_over = "select period_end < clock_timestamp() from billing.billing_periods where organization_id = %s"

    def act(connection: Connection, _: int) -> int:
        while True:
            was_over = value(connection, is_over, organization.id)
            try:
                reserve(connection, organization.id, "pages")
            except psycopg.Error:
                if was_over:
                    raise
                # What is refused now waits for the next period.
            else:
                return 1

    granted = ask_at_once(shared_database, "postgres", act)
    ended, running = superuser.execute(
        "select granted from billing.quota_counters where organization_id = %s order by period_start", [organization.id]
    ).fetchall()
    assert ended[0] <= 40
    assert running == (40,)
    assert granted == ended[0] + running[0]


def test_seats_come_to_the_limit(shared_database: Database, superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "members", 25, kind="limit")

    def act(connection: Connection, _: int) -> int:
        connection.execute(
            """
            with person as (
              insert into tenancy.users (subject, email)
              select s, s || '@example.com' from (select gen_random_uuid()::text as s) as one
              returning id
            )
            insert into tenancy.memberships (organization_id, user_id, role) select %s, id, 'viewer' from person
            """,
            [organization.id],
        )
        return 1

    assert ask_at_once(shared_database, "postgres", act) == 25 - len(organization.members)
