"""What tests of rating say again and again: a plan with its prices, an organization that has it, what it has to pay."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, ingest, moment

Terms = dict[str, Any]
"""A price as billing.rate() takes it, its numbers decimals."""

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

_numbers = count(1)
_names = (f"made.{number}" for number in _numbers)


def as_json(terms: Any) -> str:
    """With the decimals as they are."""
    if isinstance(terms, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {as_json(part)}" for name, part in terms.items()) + "}"
    if isinstance(terms, list):
        return "[" + ", ".join(map(as_json, terms)) + "]"
    return f"{terms:f}" if isinstance(terms, Decimal) else json.dumps(terms)


class Ledger:
    def __init__(self, superuser: Connection, database: Database, make_organization: MakeOrganization) -> None:
        self.superuser, self.database, self.make_organization = superuser, database, make_organization
        self.plan = "starter"

    def begin(self) -> None:
        """A plan for what comes next: nobody else owes its minimums."""
        self.plan = next(_names)
        self.superuser.execute("insert into billing.plans (code, name) values (%s, 'Plan')", [self.plan])

    def organization(self, timezone: str = "UTC", kind: str = "organization") -> UUID:
        made = self.make_organization(self.database, timezone=timezone, kind=kind, roles=("owner",)).id
        self.superuser.execute("update tenancy.organizations set plan = %s where id = %s", [self.plan, made])
        return made

    def meter(self, terms: Terms, aggregation: str = "sum", reads: str = "quantity") -> str:
        """A meter with that price in the plan."""
        code = next(_names)
        self.superuser.execute(
            """
            insert into metering.meters (code, event_name, aggregation, value, unit, description)
            values (%s, %s, %s, %s, 'unit', 'Units')
            """,
            [code, code, aggregation, reads],
        )
        self.superuser.execute(
            """
            insert into billing.prices (
              meter_code, plan_code, currency, model, unit_amount_cents, package_size, tiers, included_quantity,
              minimum_cents, maximum_cents, effective_from
            )
            values (%s, %s, 'usd', %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                code, self.plan, terms["model"], terms.get("unit_amount_cents"), terms.get("package_size"),
                as_json(terms["tiers"]) if "tiers" in terms else None, terms["included_quantity"],
                terms.get("minimum_cents"), terms.get("maximum_cents"), LONG_AGO,
            ],
        )  # fmt: skip
        return code

    def send(self, organization: UUID, events: list[tuple[str, Decimal, datetime]], late: str = "reject") -> None:
        body = ", ".join(
            f'{{"id": "{next(_numbers)}", "event": "{code}", "quantity": {quantity:f}, "time": "{at.isoformat()}"}}'
            for code, quantity, at in events
        )
        assert ingest(self.superuser, f"[{body}]", organization, late=late).accepted == len(events)

    def lines(self, organization: UUID, months_ago: int) -> dict[tuple[str, str], list[Decimal]]:
        """What is to be paid for each meter, by the draft of an invoice, person first."""
        found: dict[tuple[str, str], list[Decimal]] = {}
        for kind, meter, amount, total, drawn in self.superuser.execute(
            """
            select l.kind, l.meter_code, l.amount_cents, (d.invoice).total_cents,
              (select sum(x.amount_cents) from unnest(d.lines) x)
            from billing.draft_invoices(%s, %s, %s, 'UTC') with ordinality as d (invoice, lines, n), unnest(d.lines) l
            order by d.n
            """,
            [organization, moment(months_ago), moment(months_ago - 1)],
        ):
            found.setdefault((kind, meter), []).append(amount)
            assert total == drawn
        return found
