"""A sidecar that is killed while it sends a message loses none: the message comes again, under the same id."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import httpx
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from tests.conftest import OpenStack
from tests.harness import RunningStack
from tests.observe import database_away, eventually
from tests.sql_requests import Connection
from tests.test_metrics import scrape
from tests.test_metrics import value as metric
from tests.usage import value
from tests.webhook_receiver import SECRET, Application, Reply, application

STATUS = "select status from notifications.webhook_messages where id = %s"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Application]:
    with application() as made:
        yield made


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack, receiver: Application) -> Iterator[RunningStack]:
    with open_stack(webhook_url=receiver.url, webhook_secret=SecretStr(SECRET)) as running:
        yield running


@pytest.fixture(scope="module")
def superuser(stack: RunningStack) -> Iterator[Connection]:
    with stack.database.connect() as connection:
        yield connection


def write(superuser: Connection) -> str:
    return str(value(superuser, "select notifications.send_test_webhook()"))


def await_delivered(superuser: Connection, message: str) -> None:
    assert eventually(lambda: value(superuser, STATUS, message), lambda status: status == "delivered") == "delivered"


def end_leases(superuser: Connection) -> None:
    """As two minutes do."""
    superuser.execute("update notifications.webhook_messages set next_attempt_at = now() where status = 'pending'")


def verified(receiver: Application, message: str) -> int:
    """How often it came, each time signed anew."""
    came = [delivery for delivery in receiver.came if delivery.id == message]
    for delivery in came:
        Webhook(SECRET).verify(delivery.body, dict(delivery.headers))
    return len(came)


def test_killed_before_the_answer(stack: RunningStack, superuser: Connection, receiver: Application) -> None:
    hold = Event()
    receiver.reply = lambda _: Reply(after=hold)
    message = write(superuser)
    assert eventually(lambda: message in receiver.ids, bool)
    stack.kill()
    hold.set()
    receiver.reply = lambda _: Reply()
    end_leases(superuser)
    stack.start()
    await_delivered(superuser, message)
    assert verified(receiver, message) == 2


def test_killed_between_the_answer_and_its_record(
    stack: RunningStack, superuser: Connection, receiver: Application
) -> None:
    """The row is locked, so that recording waits; whoever waits goes with the sidecar."""
    hold = Event()
    receiver.reply = lambda _: Reply(after=hold)
    message = write(superuser)
    assert eventually(lambda: message in receiver.ids, bool)
    waiting = "select pid from pg_stat_activity where query ~ 'mark_webhook' and wait_event_type = 'Lock'"
    with stack.database.connect(autocommit=False) as holder:
        holder.execute("select 1 from notifications.webhook_messages where id = %s for update", [message])
        hold.set()
        assert eventually(lambda: superuser.execute(waiting).fetchall(), bool)
        stack.kill()
        superuser.execute(f"select pg_terminate_backend(pid, 60000) from ({waiting}) w")
        holder.rollback()
    assert value(superuser, STATUS, message) == "pending"
    receiver.reply = lambda _: Reply()
    end_leases(superuser)
    stack.start()
    await_delivered(superuser, message)
    assert verified(receiver, message) == 2


def test_what_the_receiver_answered_is_recorded_when_postgres_comes_back(
    stack: RunningStack, superuser: Connection, receiver: Application
) -> None:
    hold = Event()
    receiver.reply = lambda _: Reply(after=hold)
    message = write(superuser)
    assert eventually(lambda: message in receiver.ids, bool)
    with database_away(stack.database):
        hold.set()
        health = f"{stack.gateway_url}/health"
        assert (
            eventually(lambda: httpx.get(health, trust_env=False).json()["database"]["status"], "down".__eq__) == "down"
        )
    with stack.database.connect() as again:
        await_delivered(again, message)
    assert verified(receiver, message) == 1
    attempts = eventually(
        lambda: metric(scrape(stack), "webhook_attempts_total", outcome="delivered"), lambda number: number >= 2
    )
    assert attempts >= 2
    names = {name for name, _ in scrape(stack)}
    assert names >= {f"goldleaves_webhook_{name}" for name in ("pending_messages", "dead_messages")}
    assert metric(scrape(stack), "webhook_dead_messages") == 0
