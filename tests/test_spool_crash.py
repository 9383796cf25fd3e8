"""Invariant 3, by force: a sidecar killed under load, again and again, loses and doubles nothing it acknowledged."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx

from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import metered_ids, wait_until_shipped

CLIENTS = 6
KILLS = 6


def test_nothing_acknowledged_is_lost_or_doubled_when_the_sidecar_is_killed(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack() as stack:
        organization = make_organization(stack.database)
        over = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(ask, stack, organization, role, over) for role in ("owner", "admin", "member") * 2]
            try:
                for _ in range(KILLS):
                    time.sleep(random.uniform(0.3, 1.2))
                    stack.kill()
                    stack.start()
                time.sleep(0.5)
            finally:
                over.set()
        acknowledged = [request_id for client in running for request_id in client.result()]
        wait_until_shipped(stack.state)
        metered = Counter(metered_ids(stack, organization.id))

    assert len(acknowledged) > 200, "there was no load to speak of"
    lost = [request_id for request_id in acknowledged if metered[request_id] == 0]
    doubled = [request_id for request_id, times in metered.items() if times > 1]
    assert (lost, doubled) == ([], [])


def ask(stack: RunningStack, organization: Organization, role: str, over: threading.Event) -> list[str]:
    """Read and write until it is over. Returns the ids of the requests whose answers arrived in full."""
    acknowledged = []
    with stack.client(organization[role].subject, org=organization.id) as client:
        while not over.is_set():
            request_id = f"crash-{uuid4()}"
            try:
                if random.random() < 0.2:
                    row = {"title": request_id}
                    response = client.post("/api/v1/cases", headers={"X-Request-ID": request_id}, json=row)
                else:
                    response = client.get("/api/v1/cases?limit=5", headers={"X-Request-ID": request_id})
            except httpx.TransportError:
                time.sleep(0.02)  # it is down: what was not answered was not acknowledged
                continue
            assert response.status_code in (200, 201, 503), response.text
            if response.status_code != 503:
                acknowledged.append(request_id)
    return acknowledged
