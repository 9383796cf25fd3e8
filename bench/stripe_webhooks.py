"""`python -m bench.stripe_webhooks`: webhooks of Stripe, signed, stored, applied and committed, from 16 connections.

A thousand organizations are customers there. What comes is what comes of them at the turn of a month: their periods
move on, invoices are finalized and paid; some become past due and active again, some events come twice, and of some
nothing is made. Postgres syncs each commit. At the end what was answered is counted, and nothing may be left to do.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final

import psycopg

from api.stripe.fixtures import Json, event, invoice, price, subscription
from api.stripe.fixtures.signing import headers_of
from bench.figures import Budget, Figure, at_least, print_figures
from bench.stack import BenchStack, bench_stack
from bench.wrk import CONNECTIONS, Wrk, require_wrk

PATH: Final = "/api/billing/stripe_webhook"
ORGANIZATIONS: Final = 1_000
AT_ONCE: Final = 20  # of those that begin
ROUNDS: Final = 5
SECONDS: Final = 4
MOST_A_SECOND: Final = 6_000  # more than that would come twice
BUDGET: Final = 1_500
MONTH: Final = 30 * 86_400
LATE: Final = 0.05  # of all payments
TWICE: Final = 0.3  # of turns, in which one event of nine comes again
PLAN: Final = [price(lookup_key="pro")]

_POST_SCRIPT: Final = Path(__file__).with_name("post_webhooks.lua")
_ORGANIZATIONS: Final = """
  with owner as (insert into tenancy.users (subject) values ('stripe') returning id),
  made as (
    insert into tenancy.organizations (kind, name, slug, owner_user_id)
    select 'organization', n::text, 'stripe-' || n, owner.id from owner, generate_series(1, %s) n
    returning id, slug
  )
  insert into stripe.customers (organization_id, id, is_live, linked_by)
  select id, 'cus_' || slug, false, 'bench' from made
"""


def measure() -> list[Figure]:
    """Raises RuntimeError when what was answered is not stored, or something could not be applied."""
    require_wrk()
    with bench_stack() as stack:
        return [_Webhooks(stack).measure()]


class _Webhooks:
    def __init__(self, stack: BenchStack) -> None:
        self._stack = stack
        self._said = _said()
        secrets = stack.stack.state.read_secrets()
        assert secrets is not None  # noqa: S101 - it runs
        self._secret = secrets.stripe_webhook

    def measure(self) -> Figure:
        with psycopg.connect(self._stack.database_url) as connection:
            connection.execute(_ORGANIZATIONS, [ORGANIZATIONS])
        # A subscription begins once, and that makes its first period, too.
        with psycopg.connect(self._stack.sidecar_database_url, autocommit=True) as connection:
            for _ in range(ORGANIZATIONS // AT_ONCE):
                begun = [json.dumps(next(self._said)) for _ in range(AT_ONCE)]
                connection.execute("select outcome from stripe.receive_events(%s::text[], null)", [begun])
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "requests"
            wrk = Wrk(
                "webhooks",
                f"{self._stack.gateway_url}{PATH}",
                script=_POST_SCRIPT,
                arguments=(str(file),),
                seconds=SECONDS,
                connections=CONNECTIONS,
            )
            rates = []
            for number in range(ROUNDS + 1):
                self._write(file)
                self._stack.vacuum()
                rates.append(wrk.run())
                print(f"  {rates[-1]:>7,.0f} webhooks/s" + (" (warm-up)" if number == 0 else ""), flush=True)
        self._require_applied()
        ours, slowest = median(rates[1:]), median(wrk.slowest[1:])
        what = f"webhooks of Stripe, verified, applied and durable, {CONNECTIONS} connections"
        budgets: tuple[Budget, ...] = (at_least("/s", ours, BUDGET),)
        return Figure(what, f"{ours:,.0f}/s, p99 {slowest:,.1f} ms", budgets=budgets)

    def _write(self, file: Path) -> None:
        """Signed now: what is older than five minutes is refused."""
        with file.open("w", encoding="utf-8") as lines:
            for _ in range(MOST_A_SECOND * SECONDS):
                body = json.dumps(next(self._said), separators=(",", ":"))
                lines.write(f"{headers_of(body, self._secret)['stripe-signature']}\t{body}\n")

    def _require_applied(self) -> None:
        left = self._stack.value(
            "select count(*) from stripe.webhook_events where status not in ('applied', 'stale', 'ignored')"
        )
        if left:
            raise RuntimeError(f"{left} events were not applied")
        stored = int(str(self._stack.value("select count(*) from stripe.webhook_events")))
        print(f"  {stored:,} events are stored, none is left to be applied")


def _said() -> Iterator[Json]:
    """What Stripe says, for ever: month after month of all customers, in the order in which it happens."""
    chance = random.Random(9)  # noqa: S311 - nothing is kept secret by it
    began = int(time.time()) - 10_800
    customers = [_Customer(number, began) for number in range(1, ORGANIZATIONS + 1)]
    for customer in customers:
        yield customer.changed("created", began)
    for turn in count(1):
        for customer in chance.sample(customers, ORGANIZATIONS):
            told = list(customer.told_in(turn, began + 60 * turn, is_late=chance.random() < LATE))
            yield from told
            if chance.random() < TWICE:
                yield chance.choice(told)


@dataclass(frozen=True)
class _Customer:
    number: int
    began: int

    def told_in(self, turn: int, at: int, *, is_late: bool) -> Iterator[Json]:
        """Of a new period: it begins, its invoice is finalized, and paid, be it at once or not."""
        id = f"in_{self.number}_{turn}"
        yield self.changed("updated", at, turn, {"latest_invoice": None}, invoice=id)
        yield _other("invoice.created", id, at)
        yield self.billed("invoice.finalized", id, at + 2)
        if is_late:
            yield self.billed("invoice.payment_failed", id, at + 3)
            yield self.changed("updated", at + 4, turn, {"status": "active"}, status="past_due", invoice=id)
            yield self.changed("updated", at + 8, turn, {"status": "past_due"}, invoice=id)
        yield self.billed("invoice.paid", id, at + 8, status="paid")
        yield _other("charge.succeeded", id, at + 8)
        yield self.changed("updated", at + 9, turn, {"metadata": {}}, invoice=id)

    def changed(
        self,
        type: str,
        at: int,
        turn: int = 0,
        previous: Json | None = None,
        *,
        status: str = "active",
        invoice: str | None = None,
    ) -> Json:
        object = subscription(
            f"sub_{self.number}",
            customer=f"cus_stripe-{self.number}",
            status=status,
            prices=PLAN,
            start=self.began + turn * MONTH,
            end=self.began + (turn + 1) * MONTH,
            created=self.began,
            latest_invoice=invoice,
        )
        return event(f"customer.subscription.{type}", object, created=at, previous=previous)

    def billed(self, type: str, id: str, at: int, status: str = "open") -> Json:
        object = invoice(
            id, customer=f"cus_stripe-{self.number}", subscription=f"sub_{self.number}", status=status, created=at
        )
        return event(type, object, created=at)


def _other(type: str, id: str, at: int) -> Json:
    return event(type, {"id": id, "object": type.partition(".")[0], "padding": "x" * 1_500}, created=at)


if __name__ == "__main__":
    print_figures(measure())
