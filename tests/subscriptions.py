"""What the tests of subscriptions say again and again: the staff at its desk, and the phases that come of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from tests.harness import Organization
from tests.sql_requests import Caller, Connection, enter, request

Row = dict[str, Any]
Phase = tuple[str, str, datetime]  # status, plan, starts_at


def call(connection: Connection, function: str, **arguments: object) -> Row:
    """A function of schema api, by who has entered."""
    query = sql.SQL("select * from api.{}({})").format(
        sql.Identifier(function),
        sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in arguments
        ),
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(query, arguments).fetchone()
    assert found
    return found


def staff_of(organization: Organization) -> Caller:
    return Caller("platform_admin", "staff|7", str(organization.id))


def phases_of(connection: Connection, organization: Organization) -> list[Phase]:
    """Those of subscriptions, from the first to what is planned. As who may see all."""
    found: list[Phase] = connection.execute(
        """
        select status, plan_code, starts_at from billing.subscription_phases
        where organization_id = %s and subscription_id is not null order by starts_at
        """,
        [organization.id],
    ).fetchall()
    return found


@dataclass(frozen=True)
class Desk:
    """Staff, or somebody else, in one transaction that is taken back."""

    connection: Connection
    organization: Organization

    def call(self, function: str, **arguments: object) -> Row:
        return call(self.connection, function, **arguments)

    def refused(self, code: str, function: str, **arguments: object) -> str:
        with pytest.raises(psycopg.Error, match=f"^{code}: ") as refused, self.connection.transaction():
            self.call(function, **arguments)
        return f"{refused.value.sqlstate} {refused.value.diag.message_primary}"

    def phases(self) -> list[tuple[str, str]]:
        return [(status, plan) for status, plan, _ in phases_of(self.connection, self.organization)]

    def as_owner(self) -> None:
        enter(self.connection, Caller("member", self.organization["owner"].subject, str(self.organization.id)))

    def as_staff(self) -> None:
        self.connection.execute("reset role")
        enter(self.connection, staff_of(self.organization))

    def messages(self) -> list[Row]:
        """What the provider's application was told, in its order."""
        found = self.connection.execute(
            """
            select payload from notifications.webhook_messages
            where organization_id = %s and type = 'subscription.changed' order by created_at, id
            """,
            [self.organization.id],
        )
        return [payload for (payload,) in found.fetchall()]


@contextmanager
def desk(api: Connection, organization: Organization) -> Iterator[Desk]:
    with request(api, staff_of(organization)) as connection:
        yield Desk(connection, organization)


def code_of(error: psycopg.Error) -> str:
    found = re.match(r"([A-Z]+(?:_[A-Z]+)+): ", error.diag.message_primary or "")
    return found[1] if found else str(error.sqlstate)


def assert_well_formed(connection: Connection, organization: Organization) -> None:
    """What holds of the timeline whatever was called, in whatever order. As who may see all."""
    connection.execute("select billing.announce_phases(%s)", [organization.id])
    now: datetime = connection.execute("select clock_timestamp()").fetchall()[0][0]
    rows = connection.execute(
        """
        select f.starts_at, f.subscription_id, f.status, f.plan_code, f.announced_at, s.trial_end, s.has_payment_method
        from billing.subscription_phases f
        left join billing.subscriptions s on s.organization_id = f.organization_id and s.id = f.subscription_id
        where f.organization_id = %s and isfinite(f.starts_at)
        order by f.starts_at
        """,
        [organization.id],
    ).fetchall()
    begun, planned = ([row for row in rows if (row[0] <= now) is has] for has in (True, False))
    assert all((row[4] is not None) is (row in begun) for row in rows), "what has begun is told, and nothing else"

    subscriptions = [row[1] for row in rows if row[1] is not None]
    runs = [one for one, before in zip(subscriptions, [None, *subscriptions], strict=False) if one != before]
    assert len(runs) == len(set(runs)), "one subscription comes after the other"
    for row, after in pairwise(rows):
        assert (row[2] == "canceled") is (after[1] != row[1]) or row[1] is None, "it ends by being canceled, once"
        if after[1] is not None and after[1] != row[1]:
            assert after[2] in ("trialing", "active", "incomplete")

    if begun:
        (plan,) = connection.execute(
            "select plan from tenancy.organizations where id = %s", [organization.id]
        ).fetchall()[0]
        assert plan == begun[-1][3]
        _, _, status, _, _, trial_end, has_payment_method = begun[-1]
        moments = {row[0]: row[2] for row in planned}
        assert [row[2] for row in planned].count("canceled") <= 1
        assert "canceled" not in [row[2] for row in planned[:-1]], "nothing is planned after the end"
        if status == "canceled":
            assert planned == []
        if status == "trialing":
            ends = "canceled" if planned[0][2] == "canceled" else "active" if has_payment_method else "paused"
            assert moments.get(trial_end) == ends, "a trial ends as was agreed"
