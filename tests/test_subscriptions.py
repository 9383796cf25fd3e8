"""A subscription over its life: what each call makes of it, what it answers when it comes again, and what is planned."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Connection
from tests.subscriptions import Desk, desk
from tests.usage import moment


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner", "admin", "member", "viewer", "billing"))


@pytest.fixture
def staff(api: Connection, organization: Organization) -> Iterator[Desk]:
    with desk(api, organization) as made:
        yield made


def near(left: datetime, right: datetime) -> bool:
    return abs(left - right) < timedelta(minutes=10)


def test_a_trial_without_a_payment_method_ends_in_a_pause(staff: Desk) -> None:
    made = staff.call("start_subscription", plan="pro")
    assert (made["plan"], made["status"], made["has_access"], made["has_payment_method"]) == (
        "pro",
        "trialing",
        True,
        False,
    )
    assert near(made["trial_end"], datetime.now(UTC) + timedelta(days=14))
    assert staff.phases() == [("trialing", "pro"), ("paused", "pro")]
    assert staff.call("set_payment_method", has_payment_method=True)["status"] == "trialing"
    assert staff.phases() == [("trialing", "pro"), ("active", "pro")]
    assert staff.call("set_payment_method", has_payment_method=False)["cancel_at"] is None
    assert staff.phases() == [("trialing", "pro"), ("paused", "pro")]
