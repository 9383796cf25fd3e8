"""What the sidecar does by the clock: it rolls usage up, says how far behind that is, and takes storage snapshots."""

from __future__ import annotations

from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import RunningStack
from tests.observe import database_away, eventually
from tests.test_metrics import scrape
from tests.test_metrics import value as metric
from tests.usage import event, ingest, value

UNROLLED = """
  select count(*) from metering.usage_events e, metering.rollup_position p
  where (e.recorded_generation, e.recorded_xid) >= (p.generation, p.xid) and e.organization_id = %s
"""
ROLLED = """
  select coalesce(sum(events), 0) from metering.usage_rollups where organization_id = %s and grain = 'period'
"""


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> UUID:
    return make_organization(stack.database, roles=("owner",)).id


def rolled_up(stack: RunningStack, organization: UUID) -> int:
    with stack.database.connect() as connection:
        return int(value(connection, ROLLED, organization))


def send(stack: RunningStack, organization: UUID, events: int, name: str) -> None:
    with stack.database.connect("sidecar") as connection:
        batch = [event(f"{name}-{number}", name="doc.upload") for number in range(events)]
        assert ingest(connection, batch, organization).accepted == events


def test_usage_is_rolled_up_while_the_sidecar_runs(stack: RunningStack, organization: UUID) -> None:
    before = metric(scrape(stack), "rollup_events_total")
    send(stack, organization, 30, "a")
    assert eventually(lambda: rolled_up(stack, organization), lambda rolled: rolled == 30) == 30
    # Less often when idle is not never.
    send(stack, organization, 20, "b")
    assert eventually(lambda: rolled_up(stack, organization), lambda rolled: rolled == 50) == 50
    seen = eventually(lambda: metric(scrape(stack), "rollup_events_total") - before, lambda grown: grown >= 50)
    assert seen >= 50


def test_an_open_transaction_holds_it_back_and_metrics_tell(stack: RunningStack, organization: UUID) -> None:
    """What was recorded after it began waits for it, and its age is shown; when it ends, all is taken."""
    with stack.database.connect(autocommit=False) as holding:
        holding.execute("select pg_current_xact_id()")
        send(stack, organization, 5, "held")
        lag = eventually(lambda: metric(scrape(stack), "rollup_lag_seconds"), lambda seconds: seconds > 0)
        assert lag > 0
        assert rolled_up(stack, organization) == 0
    assert eventually(lambda: rolled_up(stack, organization), lambda rolled: rolled == 5) == 5
    assert eventually(lambda: metric(scrape(stack), "rollup_lag_seconds"), lambda seconds: seconds == 0) == 0


def test_days_that_ended_get_their_snapshot(stack: RunningStack, organization: UUID) -> None:
    """At start: a sidecar that was away takes what it missed."""
    with stack.database.connect() as connection:
        count = "select count(*) from metering.storage_snapshots where organization_id = %s"
        assert value(connection, count, organization) == 0
        stack.kill()
        stack.start()
        assert eventually(lambda: value(connection, count, organization), lambda days: days == 1) == 1


def test_it_goes_on_after_postgres_was_away(stack: RunningStack, organization: UUID) -> None:
    """A failure of it is no failure of the sidecar: /health speaks of Postgres, and then of nothing."""
    with database_away(stack.database):
        pass
    send(stack, organization, 3, "after")
    assert eventually(lambda: rolled_up(stack, organization), lambda rolled: rolled == 3) == 3
    with stack.client("nobody") as client:
        assert client.get("/health").status_code == 200
