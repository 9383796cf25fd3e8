"""The load: people behind the gateway, and the provider's backend that sends usage in every format that is taken."""

from __future__ import annotations

import gzip
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import httpx

from soak.account import Account, Usage

NAMES: Final = ("soak.metered", "soak.unmetered")
LATE_NAME: Final = "doc.processed"  # it has a price, so that its period has an invoice
USERS: Final = 50
SOURCE: Final = "/soak/sensors"
AWAY: Final = frozenset({429, 500, 502, 503, 504})  # answers of a stack of which a part is away
SETTLE_SECONDS: Final = 180.0  # after the end, until what has no answer yet has to have one


@dataclass(frozen=True)
class Tenant:
    id: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Load:
    """What all clients share. `last_month` is a moment whose period is closed while they run."""

    gateway_url: str
    tenants: Sequence[Tenant]
    service_token: str = field(repr=False)
    corrections: bool
    last_month: datetime
    account: Account
    over: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Sending:
    """A request that is sent until it is answered. `rejected` and `conflicts` are how many are bad on purpose."""

    what: str
    content_type: str
    body: bytes
    events: tuple[Usage, ...]
    organization: str | None = None
    gzip: bool = False
    known: bool = False  # all of it was accepted before
    rejected: int = 0
    conflicts: int = 0


class Client:
    """Sends one request after the other. One client a thread."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._account = load.account
        self._http = httpx.Client(base_url=load.gateway_url, timeout=60, trust_env=False)
        self._over_since: float | None = None

    def run(self, step: Callable[[], None]) -> None:
        with self._http:
            while not self._load.over.is_set():
                step()

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], *, billable: bool = False, **content: Any
    ) -> httpx.Response | None:
        """The answer, when all of it came."""
        request_id = self._account.ask(billable=billable)
        try:
            answer = self._http.request(method, path, headers={**headers, "X-Request-ID": request_id}, **content)
        except httpx.TransportError:
            self._account.not_answered(request_id)
            time.sleep(random.uniform(0.02, 0.2))
            return None
        self._account.answered(request_id, answer.status_code)
        return answer

    def insist(self, what: str, ask: Callable[[], httpx.Response | None]) -> httpx.Response | None:
        """Ask until there is an answer of a stack that is whole. None, and a surprise, when there is none in time."""
        while True:
            answer = ask()
            if answer is not None and answer.status_code not in AWAY:
                return answer
            if self._load.over.is_set():
                self._over_since = self._over_since or time.monotonic()
                if time.monotonic() - self._over_since > SETTLE_SECONDS:
                    self._account.surprise(f"{what}: still not answered: {answer.text if answer else 'hung up'}")
                    return None
            time.sleep(random.uniform(0.05, 0.5))


class Person(Client):
    """Somebody behind the gateway."""

    def __init__(self, load: Load, tenant: Tenant) -> None:
        super().__init__(load)
        self._tenant = tenant
        self._headers = {"Authorization": f"Bearer {tenant.token}", "X-Organization-ID": tenant.id}

    def step(self) -> None:
        random.choices((self._read, self._write, self._upload, self._ask_for_free), (6, 2, 2, 1))[0]()
        time.sleep(random.uniform(0, 0.02))

    def _read(self) -> None:
        self._check("read", self.ask("GET", "/api/v1/cases?limit=3", self._headers, billable=True), 200)

    def _write(self) -> None:
        case = {"title": f"A case {uuid4()}"}
        self._check("write", self.ask("POST", "/api/v1/cases", self._headers, billable=True, json=case), 201)

    def _upload(self) -> None:
        """A document is in the books when its row is there, answered or not."""
        title = f"soak {uuid4()}"
        document = {"title": title, "size_bytes": random.randrange(1, 10_000)}
        answer = self.ask("POST", "/api/v1/documents", self._headers, billable=True, json=document)
        self._account.document(title, is_there=answer is not None and answer.status_code == 201)
        self._check("upload", answer, 201)

    def _ask_for_free(self) -> None:
        path = random.choice(("/api/v1/rpc/usage_summary", "/api/v1/organizations", "/api/v1/nothing-here"))
        self._check("free request", self.ask("GET", path, self._headers), 200, 404)

    def _check(self, what: str, answer: httpx.Response | None, *expected: int) -> None:
        self._account.did(what)
        if answer is not None and answer.status_code not in {*expected, *AWAY}:
            self._account.surprise(f"{what}: {answer.status_code} {answer.text[:300]}")


class Backend(Client):
    """The provider's backend."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self._sent: deque[Sending] = deque(maxlen=50)
        self._events: deque[Usage] = deque(maxlen=500)  # of its own, so that nobody else corrects them
        self._steps: tuple[tuple[Callable[[], None], int], ...] = (
            (self._single, 30),
            (self._batch, 10),
            (self._cloud_event, 8),
            (self._cloud_events, 4),
            (self._lines, 4),
            (self.send_late, 3),
            (self._duplicate, 10),
            (self._conflict, 3),
            (self._one_bad, 3),
            *(((self._void, 5), (self._amend, 5)) if load.corrections else ()),
        )

    def step(self) -> None:
        steps, weights = zip(*self._steps, strict=True)
        random.choices(steps, weights)[0]()
        time.sleep(random.uniform(0, 0.01))

    def settle(self, sending: Sending) -> None:
        """Send it until it is answered, and write down what the answer says."""
        headers = {"Content-Type": sending.content_type, **self._authorization(sending.organization)}
        body = sending.body
        if sending.gzip:
            headers["Content-Encoding"], body = "gzip", gzip.compress(body)
        answer = self.insist(sending.what, lambda: self.ask("POST", "/v1/events", headers, content=body))
        if answer is None:
            return
        self._account.did(sending.what)
        outcome = answer.json() if answer.status_code == 200 else {}
        counted = outcome.get("accepted", 0), outcome.get("duplicates", 0)
        refused = tuple(len(outcome.get(name, ())) for name in ("conflicts", "rejected"))
        if sum(counted) != len(sending.events) or refused != (sending.conflicts, sending.rejected):
            self._account.surprise(f"{sending.what}: {answer.status_code} {answer.text[:300]}")
        elif sending.known and counted[0]:
            self._account.surprise(f"{sending.what}: {counted[0]} events were accepted a second time")
        elif not sending.known:
            self._account.accepted(sending.events)
            if not sending.rejected:
                self._sent.append(sending)
            self._events.extend(event for event in sending.events if event.name in NAMES)

    def _single(self) -> None:
        self._send_events("single", 1, wrap=lambda events: events[0])

    def _batch(self) -> None:
        self._send_events("batch", random.randrange(2, 200), compress=random.random() < 0.3)

    def _send_events(
        self,
        what: str,
        number: int,
        wrap: Callable[[list[dict[str, Any]]], object] = lambda events: {"events": events},
        *,
        compress: bool = False,
    ) -> None:
        """Of one organization, named by the header, or of many, which name theirs."""
        one = self._any_tenant() if random.random() < 0.5 else None
        events = tuple(self._usage(one or self._any_tenant()) for _ in range(number))
        body = wrap([_ours(event, named=one is None) for event in events])
        self.settle(Sending(what, "application/json", _json(body), events, one, gzip=compress))

    def _cloud_event(self) -> None:
        one = self._any_tenant()
        event = self._usage(one, source=SOURCE)
        self.settle(Sending("CloudEvent", "application/cloudevents+json", _json(_cloud(event)), (event,), one))

    def _cloud_events(self) -> None:
        one = self._any_tenant()
        events = tuple(self._usage(one, source=SOURCE) for _ in range(random.randrange(2, 50)))
        body = _json([_cloud(event) for event in events])
        self.settle(Sending("CloudEvents", "application/cloudevents-batch+json", body, events, one))

    def _lines(self) -> None:
        events = tuple(self._usage(self._any_tenant()) for _ in range(random.randrange(1, 3000)))
        body = b"\n".join(_json(_ours(event)) for event in events)
        self.settle(Sending("NDJSON", "application/x-ndjson", body, events, gzip=random.random() < 0.5))

    def send_late(self) -> None:
        """Of a period that is closed at some moment of the run: before it counts there, after it as an adjustment."""
        one = self._load.tenants[0].id
        event = replace(self._usage(one), name=LATE_NAME)
        when = self._load.last_month + timedelta(seconds=random.randrange(86_400))
        body = _json({"events": [{**_ours(event), "time": when.isoformat()}], "late": "adjust"})
        self.settle(Sending("late event", "application/json", body, (event,)))

    def _duplicate(self) -> None:
        if self._sent:
            self.settle(replace(random.choice(self._sent), what="duplicates", known=True))

    def _conflict(self) -> None:
        if ours := [event for event in self._events if not event.id.startswith("cloud-")]:
            event = random.choice(ours)
            body = _json(_ours(replace(event, quantity=event.quantity + 1)))
            self.settle(Sending("conflict", "application/json", body, (), known=True, conflicts=1))

    def _one_bad(self) -> None:
        events = tuple(self._usage(self._any_tenant()) for _ in range(5))
        bad = {**_ours(self._usage(self._any_tenant())), "quantity": "much"}
        body = _json([*(_ours(event) for event in events), bad])
        self.settle(Sending("one bad of many", "application/json", body, events, rejected=1))

    def _void(self) -> None:
        if (event := self._take()) is None:
            return
        path, headers = self._event_path(event), self._authorization(event.organization)
        answer = self.insist("void", lambda: self.ask("DELETE", path, headers))
        if answer is None or answer.status_code != 200:
            self._account.surprise(f"void: {answer.status_code if answer else 0} {answer.text[:300] if answer else ''}")
            return
        self._account.did("void")
        self._account.voided(event)

    def _amend(self) -> None:
        if (event := self._take()) is None:
            return
        right = replace(event, id=f"amended-{uuid4()}", quantity=random.randrange(1, 1000))
        path, headers = self._event_path(event), self._authorization(event.organization)
        body = {"id": right.id, "quantity": right.quantity}
        answer = self.insist("amend", lambda: self.ask("PUT", path, headers, json=body))
        if answer is None or answer.status_code != 200:
            self._account.surprise(
                f"amend: {answer.status_code if answer else 0} {answer.text[:300] if answer else ''}"
            )
            return
        self._account.did("amend")
        self._account.voided(event)
        self._account.accepted((right,))

    def _take(self) -> Usage | None:
        """An event that is corrected now, and by nobody later."""
        if not self._events:
            return None
        event = random.choice(self._events)
        self._events.remove(event)
        return event

    def _event_path(self, event: Usage) -> str:
        source = {"source": SOURCE} if event.id.startswith("cloud-") else {}
        return str(httpx.URL(f"/v1/events/{event.id}", params=source or None))

    def _authorization(self, organization: str | None) -> dict[str, str]:
        named = {"X-Organization-ID": organization} if organization is not None else {}
        return {"Authorization": f"Bearer {self._load.service_token}", **named}

    def _any_tenant(self) -> str:
        return random.choice(self._load.tenants).id

    @staticmethod
    def _usage(organization: str, source: str | None = None) -> Usage:
        name, user = random.choice(NAMES), f"user-{random.randrange(USERS)}"
        return Usage(f"{'cloud' if source else 'event'}-{uuid4()}", organization, name, random.randrange(1, 1000), user)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _ours(event: Usage, *, named: bool = True) -> dict[str, Any]:
    whose = {"organization_id": event.organization} if named else {}
    fields = {"id": event.id, "event": event.name, "quantity": event.quantity, "user_id": event.user}
    return {**fields, "time": datetime.now(UTC).isoformat(), "dimensions": {"model": "large"}, **whose}


def _cloud(event: Usage) -> dict[str, Any]:
    attributes = {"specversion": "1.0", "id": event.id, "source": SOURCE, "type": event.name}
    return {
        **attributes,
        "time": datetime.now(UTC).isoformat(),
        "data": {"quantity": event.quantity, "user_id": event.user},
    }
