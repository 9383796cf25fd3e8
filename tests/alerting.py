"""What tests of usage alerts say again and again: an organization that uses something, what it is told, and by whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

from tests.harness import Database, Organization
from tests.meters import roll_up_all
from tests.sql_requests import Caller, enter, run
from tests.usage import Connection, event, ingest, moment, value

METER = "doc.upload"  # of which one costs 25
LIMIT = "uploads"  # a feature of PLAN: a limit per period of what METER counts
PLAN = "alerting"

_numbers = count(1)


class Fired(NamedTuple):
    """A row of notification_log: what crossed which threshold, with what was found."""

    what: str  # a meter, a feature, or amount
    threshold_kind: str
    threshold: Decimal
    value: Decimal
    limit: Decimal | None


@dataclass(frozen=True)
class Book:
    """An organization, what it uses and what it is told."""

    database: Database
    superuser: Connection
    sidecar: Connection
    api: Connection
    organization: Organization

    @property
    def id(self) -> UUID:
        return self.organization.id

    def use(self, quantity: int = 1, at: datetime | None = None) -> str:
        """Record so much usage of METER. Returns the event's id."""
        key = f"use-{next(_numbers)}"
        assert ingest(self.sidecar, [event(key, at, name=METER, quantity=quantity)], self.id).accepted == 1
        return key

    def alert(self, kind: str, threshold: int | Decimal, meter: str | None = None, feature: str | None = None) -> UUID:
        made: UUID = self.ask("select id from api.create_usage_alert(%s, %s, %s, %s)", kind, threshold, meter, feature)
        return made

    def ask(self, query: str, *parameters: object, role: str = "owner") -> Any:
        """The one value that the query returns to somebody of the organization. It is committed."""
        with self.api.transaction():
            enter(self.api, Caller("member", self.organization[role].subject, path="/rpc/any"))
            found = run(self.api, query, parameters).fetchone()
        assert found
        return found[0]

    def change(self, *statements: str) -> None:
        """As superuser; %(org)s is the organization."""
        for statement in statements:
            run(self.superuser, statement, {"org": self.id})

    def look(self) -> list[Fired]:
        """Roll up, fire alerts, and say what fired since the last look."""
        before = self.told()
        roll_up_all(self.sidecar)
        report = value(self.sidecar, "select billing.fire_alerts()")
        assert (report["failed"], report["more"]) == ([], False), report
        return [one for one in self.told() if one not in before]

    def told(self, months_ago: int = 0, kind: str = "usage_alert") -> list[Fired]:
        """All that fired in that month."""
        rows = self.superuser.execute(
            """
            select coalesce(meter_code, feature, 'amount'), threshold_kind, threshold, value, limit_value
            from notifications.notification_log
            where organization_id = %s and period_start = %s and kind = %s
            order by 1, 2, 5, 3
            """,
            [self.id, moment(months_ago), kind],
        )
        return [Fired(*row) for row in rows]


def percents(limit: int, *found: tuple[int, int], what: str = LIMIT, kind: str = "percent_of_limit") -> list[Fired]:
    """Percentages of the limit, each with the value that was found."""
    return [Fired(what, kind, Decimal(part), Decimal(used), Decimal(limit)) for part, used in found]


def absolute(*found: tuple[int, int], what: str = METER) -> list[Fired]:
    """Thresholds, each with the value that was found."""
    return [Fired(what, "absolute", Decimal(threshold), Decimal(used), None) for threshold, used in found]


def make_plan(superuser: Connection, limit: int = 10) -> None:
    """PLAN has no fee, and one limit."""
    superuser.execute("insert into billing.plans (code, name) values (%s, 'Alerting') on conflict do nothing", [PLAN])
    superuser.execute(
        """
        insert into billing.plan_features (plan_code, feature, kind, limit_value, meter_code)
        values (%s, %s, 'limit_per_period', %s, %s) on conflict do nothing
        """,
        [PLAN, LIMIT, limit, METER],
    )


def put_on_plan(superuser: Connection, organizations: Sequence[UUID]) -> None:
    superuser.execute("update tenancy.organizations set plan = %s where id = any (%s)", [PLAN, list(organizations)])
