"""An event keeps what it weighed when it happened: the organization's own weight, else that for all, else nothing."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.usage import Connection, event, finalize, ingest, moment, month


@pytest.fixture(scope="module")
def organizations(shared_database: Database, make_organization: MakeOrganization) -> list[Organization]:
    return [make_organization(shared_database, roles=("owner",)) for _ in range(2)]


@pytest.fixture
def connection(shared_database: Database, organizations: list[Organization]) -> Iterator[Connection]:
    """`work` weighs 2, from the middle of last month on 5; for the first organization 7 from its 20th day on."""
    with shared_database.connect() as made, made.transaction(force_rollback=True):
        for organization, at, weight in (
            (None, moment(24), "2"),
            (None, moment(1, days=14), "5"),
            (organizations[0].id, moment(1, days=19), "7.5"),
        ):
            made.execute(
                """
                insert into metering.operation_weights (organization_id, operation, effective_from, weight)
                values (%s, 'work', %s, %s)
                """,
                [organization, at, weight],
            )
        yield made


def weights(connection: Connection) -> dict[str, Decimal | None]:
    found = connection.execute("select idempotency_key, weighted_units from metering.usage_events").fetchall()
    return dict(found)


def test_the_weight_is_that_of_the_moment(connection: Connection, organizations: list[Organization]) -> None:
    mine, other = organizations
    batch = [
        event("ancient", moment(30), name="work", organization_id=str(mine.id)),
        event("early", moment(1, days=13), name="work", quantity=3, organization_id=str(mine.id)),
        event("later", moment(1, days=14), name="work", quantity=3, organization_id=str(mine.id)),
        event("own", moment(1, days=20), name="work", quantity=3, organization_id=str(mine.id)),
        event("of another", moment(1, days=20), name="work", quantity=3, organization_id=str(other.id)),
        event("now", name="work", organization_id=str(mine.id)),
        event("weightless", name="play", organization_id=str(mine.id)),
    ]
    assert ingest(connection, batch).accepted == len(batch)
    assert weights(connection) == {
        "ancient": None,
        "early": 6,
        "later": 15,
        "own": Decimal("22.5"),
        "of another": 15,
        "now": Decimal("7.5"),
        "weightless": None,
    }


def test_an_adjustment_weighs_what_it_did_when_it_happened(
    connection: Connection, organizations: list[Organization]
) -> None:
    finalize(connection, organizations[1].id, month(1))
    late = {**event("late", moment(1, days=13), name="work", quantity=4), "late": "adjust"}
    assert ingest(connection, [late], organizations[1].id).accepted == 1
    assert weights(connection) == {"late": 8}
