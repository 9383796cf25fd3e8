"""The sidecar closes what is due by the clock, goes on after a kill, and lets no organization hold up another."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization, OpenStack
from tests.harness import RunningStack
from tests.observe import database_away, eventually
from tests.test_metrics import scrape
from tests.test_metrics import value as metric
from tests.usage import event, ingest, moment, value

CLOSED = "select count(*) from billing.billing_periods where organization_id = any (%s) and status = 'finalized'"
INVOICES = "select count(*) from billing.invoices where organization_id = any (%s)"
# Closing it takes as long as somebody holds the lock; or it fails.
_WAITS = "perform pg_advisory_xact_lock(7)"
_FAILS = "raise exception 'no room for an invoice'"
_TRIGGER = """
create or replace function billing.by_test() returns trigger language plpgsql security definer as $$
begin
  {what};
  return new;
end
$$;
create or replace trigger by_test before insert on billing.invoices
  for each row when (new.organization_id = '{organization}') execute function billing.by_test();
"""


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    """It is stopped between tests: a run at its start is what they wait for, and the next one comes a minute later."""
    with open_stack(billing_grace=timedelta(0)) as running:
        yield running


@pytest.fixture
def organizations(stack: RunningStack, make_organization: MakeOrganization) -> list[UUID]:
    """Those that used something last month, while no sidecar runs."""
    stack.stop()
    made = [make_organization(stack.database, roles=("owner",)).id for _ in range(8)]
    with stack.database.connect("sidecar") as connection:
        for organization in made:
            assert ingest(connection, [event("a", moment(1, days=3))], organization).accepted == 1
    return made


def count(stack: RunningStack, query: str, organizations: list[UUID]) -> int:
    with stack.database.connect() as connection:
        return int(value(connection, query, organizations))


def await_closed(stack: RunningStack, organizations: list[UUID]) -> None:
    most = len(organizations)
    assert eventually(lambda: count(stack, CLOSED, organizations), lambda closed: closed == most) == most
    assert count(stack, INVOICES, organizations) == most


def hinder(stack: RunningStack, what: str, organization: UUID) -> None:
    with stack.database.connect() as connection:
        connection.execute(_TRIGGER.format(what=what, organization=organization).encode())


def let_go(stack: RunningStack) -> None:
    with stack.database.connect() as connection:
        connection.execute("drop trigger by_test on billing.invoices")


def test_what_is_due_is_closed_while_the_sidecar_runs(stack: RunningStack, organizations: list[UUID]) -> None:
    stack.start()
    await_closed(stack, organizations)
    told = eventually(lambda: metric(scrape(stack), "periods_closed_total"), lambda closed: closed == 8)
    assert told == 8
    assert metric(scrape(stack), "invoices_issued_total") == 8
    assert metric(scrape(stack), "period_overdue_seconds") == 0


def test_one_that_cannot_be_closed_holds_up_no_other(stack: RunningStack, organizations: list[UUID]) -> None:
    poisoned, *others = organizations
    hinder(stack, _FAILS, poisoned)
    stack.start()
    await_closed(stack, others)
    assert eventually(lambda: metric(scrape(stack), "period_failures_total"), lambda failed: failed == 1) == 1
    assert metric(scrape(stack), "period_overdue_seconds") > 0
    assert count(stack, CLOSED, [poisoned]) == 0
    let_go(stack)
    stack.kill()
    stack.start()
    await_closed(stack, organizations)


@pytest.mark.parametrize("dies", ["sidecar", "Postgres"])
def test_what_was_cut_off_in_the_middle_is_closed_once(
    stack: RunningStack, organizations: list[UUID], dies: str
) -> None:
    with stack.database.connect() as holder:
        holder.execute("select pg_advisory_lock(7)")
        hinder(stack, _WAITS, organizations[3])
        stack.start()
        waits = """
          select count(*) from pg_locks
          where locktype = 'advisory' and objid = 7 and not granted
            and database = (select oid from pg_database where datname = current_database())
        """
        assert eventually(lambda: value(holder, waits), lambda waiting: waiting == 1) == 1
        if dies == "sidecar":
            stack.kill()
    if dies == "Postgres":
        with database_away(stack.database):
            pass
    let_go(stack)
    if dies == "sidecar":
        stack.start()
    await_closed(stack, organizations)


def test_periods_are_left_to_people_where_that_is_said(open_stack: OpenStack) -> None:
    with open_stack(close_periods=False) as stack:
        names = {name for name, _ in scrape(stack)}
    assert "goldleaves_rollup_events_total" in names
    assert "goldleaves_periods_closed_total" not in names
