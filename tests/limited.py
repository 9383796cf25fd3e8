"""What tests of limits at the gateway say again and again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import UUID

import httpx

from api.rate_limits.counters import WINDOW_SECONDS
from api.rate_limits.rate_limits import window_at
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization, RunningStack

FREE = "/api/v1/organizations?select=id"  # not billable
BILLED = "/api/v1/cases?select=id"


def seconds_left(organization_id: UUID) -> float:
    """Of the organization's minute."""
    return WINDOW_SECONDS - window_at(organization_id, time.time())[1]


def make_limited(
    make: MakeOrganization, database: Database, plan: str = "starter", *, least: float = 30, most: float = 60
) -> Organization:
    """One on that plan, in whose minute there is so much time left. The minutes of organizations begin at seconds of
    their own, so that some are always found.
    """
    with database.connect() as superuser:
        while True:
            made = make(database, roles=("owner", "viewer"))
            if least < seconds_left(made.id) < most:
                superuser.execute("update tenancy.organizations set plan = %s where id = %s", [plan, made.id])
                return made


def ask(stack: RunningStack, organization: Organization, path: str = FREE, **headers: str) -> httpx.Response:
    with stack.client(organization["owner"].subject, org=organization.id) as client:
        return client.get(path, headers=headers)


def at_once(clients: list[httpx.Client], requests: int, path: str = FREE) -> list[httpx.Response]:
    """Each client sends so many, one after the other, all of them at the same time."""
    barrier = Barrier(len(clients))

    def send(client: httpx.Client) -> list[httpx.Response]:
        barrier.wait(60)
        return [client.get(path) for _ in range(requests)]

    with ThreadPoolExecutor(len(clients)) as pool:
        return [answer for answers in pool.map(send, clients) for answer in answers]
