"""Small requests share a transaction, and none of them can tell: each is answered after the commit that holds it, by
what it alone deserves, whatever happens to the others and to the connection.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, eventually
from tests.sql_requests import Connection

GOOD = 12
WAITING = """
  select pid from pg_stat_activity
  where datname = current_database() and application_name = 'goldleaves-sidecar' and wait_event_type = 'Lock'
"""


@dataclass(frozen=True)
class Site:
    stack: RunningStack
    organization: Organization
    backend: httpx.Client
    operator: Connection

    def send(self, key: str, client: httpx.Client | None = None) -> httpx.Response:
        return (client or self.backend).post("/v1/events", json={"id": key, "event": "job.done", "quantity": 1})

    def stored(self) -> Counter[str]:
        rows = self.operator.execute(
            "select idempotency_key from metering.usage_events where organization_id = %s and source = 'api'",
            [self.organization.id],
        ).fetchall()
        return Counter(key for (key,) in rows)

    def transactions(self) -> int:
        found = self.operator.execute(
            """
            select count(distinct recorded_xid)
            from metering.usage_events
            where organization_id = %s and source = 'api'
            """,
            [self.organization.id],
        ).fetchone()
        return int(found[0]) if found else 0

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Whatever is to be stored waits, from the first group on, and the others gather."""
        with self.stack.database.connect(autocommit=False) as blocker:
            blocker.execute("lock table metering.event_keys in access exclusive mode")
            yield
            blocker.rollback()

    def await_groups(self, number: int = 1) -> list[int]:
        rows = eventually(lambda: self.operator.execute(WAITING).fetchall(), lambda rows: len(rows) >= number)
        assert len(rows) >= number
        return [pid for (pid,) in rows]


@pytest.fixture
def site(stack: RunningStack, make_organization: MakeOrganization) -> Iterator[Site]:
    organization = make_organization(stack.database)
    with (
        stack.client("backend", role="service", org=organization.id) as backend,
        stack.database.connect() as operator,
    ):
        yield Site(stack, organization, backend, operator)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2 * GOOD) as pool:
        yield pool


def accepted(answers: list[Future[httpx.Response]]) -> list[int]:
    results = [answer.result() for answer in answers]
    assert [answer.status_code for answer in results] == [200] * len(results), [answer.text for answer in results]
    return [answer.json()["accepted"] for answer in results]


def providers_key(stack: RunningStack) -> tuple[str, str]:
    with stack.client("staff", role="platform_admin") as staff:
        made = staff.post("/api/v1/rpc/create_api_key", json={"name": "Jobs", "scopes": ["events:write"]}).json()
    return made["id"], made["key"]


def test_one_malformed_and_one_revoked_cost_the_others_nothing(site: Site, pool: ThreadPoolExecutor) -> None:
    key_id, key = providers_key(site.stack)
    headers = {"Authorization": f"Bearer {key}", "X-Organization-ID": str(site.organization.id)}
    with httpx.Client(base_url=site.stack.gateway_url, headers=headers, trust_env=False) as robbed:
        assert accepted([pool.submit(site.send, "known", robbed)]) == [1]
        with site.held_up():
            good = [pool.submit(site.send, f"good-{number}") for number in range(GOOD // 2)]
            malformed = pool.submit(site.backend.post, "/v1/events", json={"events": "none"})
            cut_off = pool.submit(
                site.backend.post, "/v1/events", content=b"[{", headers={"Content-Type": "application/json"}
            )
            # The gateway knows this key, and remembers it; Postgres does not any more when the group gets there.
            site.operator.execute("update tenancy.api_keys set revoked_at = now() where id = %s", [key_id])
            revoked = pool.submit(site.send, "revoked", robbed)
            good += [pool.submit(site.send, f"good-{number}") for number in range(GOOD // 2, GOOD)]
            site.await_groups()
        assert accepted(good) == [1] * GOOD
        assert_problem(malformed.result(), 400, "INVALID_BODY")
        assert_problem(cut_off.result(), 400, "INVALID_BODY")
        assert_problem(revoked.result(), 401, "INVALID_API_KEY")
    assert site.stored() == Counter(["known", *(f"good-{number}" for number in range(GOOD))])
    assert site.transactions() < 1 + GOOD, "they shared transactions"


def test_the_same_id_sent_at_once_counts_once(site: Site, pool: ThreadPoolExecutor) -> None:
    with site.held_up():
        answers = [pool.submit(site.send, "same") for _ in range(GOOD)]
        site.await_groups()
    assert sorted(accepted(answers)) == [0] * (GOOD - 1) + [1]
    assert [answer.result().json()["duplicates"] for answer in answers].count(1) == GOOD - 1


def test_who_hangs_up_takes_nobody_along(site: Site, pool: ThreadPoolExecutor) -> None:
    url = urlsplit(site.stack.gateway_url)
    body = b'{"id": "gone", "event": "job.done", "quantity": 1}'
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Organization-ID: {site.organization.id}\r\n"
        f"Authorization: Bearer {site.stack.token('backend', role='service')}\r\n\r\n"
    ).encode()
    with site.held_up():
        first = pool.submit(site.send, "first")
        site.await_groups()
        for _ in range(3):
            with socket.create_connection((url.hostname, url.port), timeout=20) as raw:
                raw.sendall(head + body)
        others = [pool.submit(site.send, f"other-{number}") for number in range(4)]
    assert accepted([first, *others]) == [1] * 5
    everybody = Counter(["first", "gone", *(f"other-{number}" for number in range(4))])
    assert eventually(site.stored, everybody.__eq__) == everybody


def test_who_closes_a_period_holds_up_nobody_else(
    site: Site, pool: ThreadPoolExecutor, make_organization: MakeOrganization
) -> None:
    def slot(organization: Organization) -> tuple[object, ...] | None:
        return site.operator.execute("select billing.period_lock_slot(%s)", [organization.id]).fetchone()

    other = make_organization(site.stack.database)
    while slot(other) == slot(site.organization):  # one in a thousand
        other = make_organization(site.stack.database)
    lock = "select pg_advisory_xact_lock(billing.period_lock_class(), billing.period_lock_slot(%s))"
    with site.stack.client("backend", role="service", org=other.id) as others:
        with site.stack.database.connect(autocommit=False) as finalizing:
            finalizing.execute(lock, [site.organization.id])
            held = [pool.submit(site.send, f"held-{number}") for number in range(GOOD)]
            site.await_groups()
            for number in range(GOOD):
                assert site.send(f"{number}", others).json()["accepted"] == 1
            assert not any(one.done() for one in held)
            finalizing.rollback()
        assert accepted(held) == [1] * GOOD


def test_a_group_whose_connection_breaks_is_stored_all_the_same(site: Site, pool: ThreadPoolExecutor) -> None:
    with site.held_up():
        answers = [pool.submit(site.send, f"{number}") for number in range(GOOD)]
        for pid in site.await_groups():
            site.operator.execute("select pg_terminate_backend(%s)", [pid])
    assert sum(accepted(answers)) == GOOD
    assert site.stored() == Counter(str(number) for number in range(GOOD))


def test_what_is_acknowledged_is_stored_once_whatever_breaks(site: Site, pool: ThreadPoolExecutor) -> None:
    """Connections break at random moments under load. Who is not told 200 sends again, as a backend should."""
    terminate = """
      select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and application_name = 'goldleaves-sidecar'
    """

    def send_many(_: int) -> list[str]:
        sent = []
        for _ in range(12):
            key = str(uuid4())
            while (answer := site.send(key)).status_code != 200:
                assert_problem(answer, 503, "DATABASE_UNAVAILABLE")
            body = answer.json()
            assert (body["accepted"] + body["duplicates"], body["conflicts"], body["rejected"]) == (1, [], [])
            sent.append(key)
        return sent

    senders = [pool.submit(send_many, number) for number in range(8)]
    while not all(sender.done() for sender in senders):
        site.operator.execute(terminate)
        site.operator.execute("select pg_sleep(%s)", [random.uniform(0.05, 0.3)])
    assert site.stored() == Counter(key for sender in senders for key in sender.result())
