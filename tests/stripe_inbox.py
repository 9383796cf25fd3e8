"""What tests of the inbox say again and again: send what Stripe would have signed, and look at what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final
from uuid import UUID

import httpx

from api.stripe.fixtures import Json, event, price, subscription
from api.stripe.fixtures.signing import headers_of, signed
from tests.harness import Database, RunningStack
from tests.sql_requests import Connection

SECRET: Final = "whsec_of_the_tests"
PATH: Final = "/api/billing/stripe_webhook"
# Within the period that runs, so that nothing of it is finalized.
NOW: Final = int(time.time())

_numbers = count(1)


@dataclass(frozen=True)
class Stripe:
    """Stripe, as the sidecar hears of it."""

    http: httpx.Client
    superuser: Connection

    def send(self, event: Json, *, path: str = PATH, secret: str = SECRET, at: int | None = None) -> httpx.Response:
        return send(self.http, event, path=path, secret=secret, at=at)

    def post(self, body: bytes, **headers: str) -> httpx.Response:
        """Any body, with the signature that it would have, unless another one is given."""
        made = headers_of(body.decode("latin-1"), SECRET) if "stripe_signature" not in headers else {}
        made |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(PATH, content=body, headers=made)

    def outcome(self, event: Json) -> str:
        answer = self.send(event)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert set(said) == {"received", "outcome", "message"} and said["received"] is True
        return str(said["outcome"])

    def row(self, id: str) -> dict[str, Any] | None:
        found = self.superuser.execute(
            "select to_jsonb(e) - 'payload' from stripe.webhook_events e where id = %s", [id]
        ).fetchone()
        return dict(found[0]) if found else None

    def stored(self) -> int:
        found = self.superuser.execute("select count(*) from stripe.webhook_events").fetchone()
        return int(found[0]) if found else 0


def send(
    http: httpx.Client, event: Json, *, path: str = PATH, secret: str = SECRET, at: int | None = None
) -> httpx.Response:
    body, headers = signed(event, secret, at=at)
    return http.post(path, content=body, headers=headers)


@contextmanager
def hearing(stack: RunningStack) -> Iterator[Stripe]:
    with (
        httpx.Client(base_url=stack.gateway_url, timeout=30, trust_env=False) as http,
        stack.database.connect() as superuser,
    ):
        yield Stripe(http, superuser)


def link(database: Database, organization_id: UUID, customer: str | None = None) -> str:
    """Make a customer at Stripe the organization's. Returns its id."""
    customer = customer or f"cus_{next(_numbers)}"
    with database.connect() as superuser:
        superuser.execute(
            "insert into stripe.customers (organization_id, id, is_live, linked_by) values (%s, %s, false, 'test')",
            [organization_id, customer],
        )
    return customer


def changed(
    customer: str, status: str = "active", *, at: int = NOW - 60, type: str = "updated", **members: Any
) -> Json:
    """An event of a subscription of the customer, another one each time."""
    id = members.pop("id", f"sub_of_{customer}")
    of_plan = {"prices": [price(lookup_key="pro")]} | members
    object = subscription(id, customer=customer, status=status, created=at, start=at, end=at + 86400, **of_plan)
    return event(f"customer.subscription.{type}", object, created=at, id=f"evt_{next(_numbers)}")
