"""Whatever is killed while webhooks stream in, each event is stored once and applied, and the last word on each
subscription counts: Stripe sends again what was not answered 200.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
from pydantic import SecretStr

from api.stack.endpoints import DATABASE
from api.stripe.fixtures import Json
from tests.conftest import HOST, MakeOrganization, OpenStack
from tests.harness import Database
from tests.observe import eventually
from tests.stripe_inbox import NOW, SECRET, changed, link, send
from tests.test_stack import new_command
from tests.usage import value

SUBSCRIPTIONS = 10
SENDERS = 6
KILLS = 3
LIFE = ("trialing", "active", "past_due", "active", "past_due", "active", "past_due", "unpaid")


def lives(database: Database, make_organization: MakeOrganization) -> tuple[list[str], list[Json]]:
    """The customers, and all of their events in any order, some of them twice."""
    organizations = [make_organization(database, roles=("owner",)) for _ in range(SUBSCRIPTIONS)]
    customers = [link(database, organization.id) for organization in organizations]
    events = [
        changed(customer, status, at=NOW - 1000 + 10 * n, type="created" if n == 0 else "updated")
        for customer in customers
        for n, status in enumerate(LIFE)
    ]
    events += random.Random(5).sample(events, len(events) // 4)
    random.Random(7).shuffle(events)
    return customers, events


def deliver(url: str, events: list[Json], secret: str, taken: Event) -> None:
    """As Stripe does: again, until it is answered 200."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for event in events:
            while not is_taken(http, event, secret):
                pass
            taken.set()


def is_taken(http: httpx.Client, event: Json, secret: str) -> bool:
    try:
        answer = send(http, event, secret=secret)
    except httpx.TransportError:
        return False  # nobody there, or gone in the middle of an answer
    assert answer.status_code in (200, 503), answer.text
    return answer.status_code == 200


def stream(url: str, events: list[Json], secret: str, kill: Callable[[], None]) -> None:
    """Kill somebody, again and again, just after an event was taken: others are under way."""
    taken, kills = Event(), 0
    with ThreadPoolExecutor(SENDERS) as pool:
        senders = [pool.submit(deliver, url, events[n::SENDERS], secret, taken) for n in range(SENDERS)]
        while kills < KILLS and not all(sender.done() for sender in senders):
            taken.clear()
            if taken.wait(60):
                kill()
                kills += 1
        for sender in senders:
            sender.result()
    assert kills == KILLS, "it was over before that"


def assert_converged(database: Database, customers: list[str], events: list[Json]) -> None:
    with database.connect() as superuser:
        unsettled = "select count(*) from stripe.webhook_events where status not in ('applied', 'stale')"
        assert eventually(lambda: value(superuser, unsettled), (0).__eq__) == 0
        stored = superuser.execute("select id from stripe.webhook_events").fetchall()
        assert sorted(id for (id,) in stored) == sorted({event["id"] for event in events})
        mirrored = superuser.execute("select customer_id, status from stripe.subscriptions").fetchall()
        assert sorted(mirrored) == [(customer, LIFE[-1]) for customer in sorted(customers)]
        for customer in customers:
            phases = superuser.execute(
                """
                select p.reason
                from billing.subscription_phases p
                join stripe.customers c on c.organization_id = p.organization_id
                where c.id = %s and p.reason is not null
                order by p.starts_at
                """,
                [customer],
            ).fetchall()
            assert [reason for (reason,) in phases] == [f"Stripe: {status}" for status in LIFE]


def test_killing_the_sidecar(open_stack: OpenStack, make_organization: MakeOrganization) -> None:
    with open_stack(stripe_webhook_secret=SecretStr(SECRET)) as stack:
        customers, events = lives(stack.database, make_organization)

        def kill() -> None:
            stack.kill()
            stack.start()

        stream(stack.gateway_url, events, SECRET, kill)
        assert_converged(stack.database, customers, events)


def test_killing_postgres(make_organization: MakeOrganization) -> None:
    """All of it, at once, as the kernel does when memory runs out. The stack's supervisor starts it again."""
    with new_command() as command:
        endpoints = command.up()
        secrets = command.state.read_secrets()
        assert secrets is not None
        database = Database(DATABASE, HOST, command.port("postgres"), secrets)
        customers, events = lives(database, make_organization)

        def kill() -> None:
            before = command.pids()["postgres"]
            os.kill(before, signal.SIGKILL)
            assert eventually(lambda: command.pids().get("postgres", before) != before, bool)

        stream(endpoints.gateway_url, events, secrets.stripe_webhook, kill)
        assert_converged(database, customers, events)
