"""The account that the stand-in plays: what it knows, what it was asked, what will fail, and where its webhooks go."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import httpx

from api.stripe.fixtures.signing import signed
from api.stripe.standin.faults import Faults
from api.stripe.standin.store import Json, Store

LOGGED_REQUESTS: Final = 100_000
ATTEMPTS: Final = 20  # to deliver a webhook
ATTEMPT_SECONDS: Final = 0.25


@dataclass
class Webhooks:
    """Where events go, and with which secret they are signed. url None: nowhere."""

    url: str | None = None
    secret: str = "whsec_standin"  # noqa: S105  whoever sends anything real has another one


@dataclass(frozen=True)
class Delivered:
    """What became of an event: the status and the body that it was answered with; 0: nobody answered."""

    event: Json
    status: int
    answer: Any


@dataclass
class Account:
    store: Store
    webhooks: Webhooks
    base_url: str = ""  # its own, for the pages that it shows
    faults: Faults = field(default_factory=Faults)
    requests: deque[Json] = field(default_factory=lambda: deque(maxlen=LOGGED_REQUESTS))
    ahead: float = 0.0  # of the clock, in seconds
    meter_events_a_second: int = 1_000
    idempotency_keys: set[str] = field(default_factory=set)  # those that a request has right now
    http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=30, trust_env=False))

    def now(self) -> int:
        return int(time.time() + self.ahead)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{uuid4().hex[:24]}"

    async def send(self, event: Json, copies: int = 1) -> list[Delivered]:
        """Keep the event, and deliver it as often as that."""
        self.store.put("event", event["id"], event)
        return [await self.deliver(event) for _ in range(copies)]

    async def deliver(self, event: Json) -> Delivered:
        """Signed, and again until it is taken. Stripe goes on for three days, and this for some seconds."""
        status, answer = 0, None
        if self.webhooks.url is None:
            return Delivered(event, status, answer)
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(ATTEMPT_SECONDS)
            body, headers = signed(event, self.webhooks.secret)
            try:
                response = await self.http.post(self.webhooks.url, content=body, headers=headers)
            except httpx.HTTPError as error:
                status, answer = 0, str(error)
                continue
            status, answer = response.status_code, _said(response)
            if response.is_success or 400 <= status < 500:
                break
        return Delivered(event, status, answer)


def _said(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text
