"""The stand-in for Stripe as tests use it: a process of its own, that real SDK clients talk to.

    from tests.stripe_server import StripeServer, stripe_server

    def test_something(...):
        with stripe_server() as stripe:                       # or with_localstripe=True, keep=tmp_path / "stripe.jsonl"
            serve(STRIPE_SECRET_KEY=stripe.key, STRIPE_API_BASE=stripe.url, STRIPE_WEBHOOK_SECRET=stripe.secret)
            Stripe(stripe.key, stripe.url)                    # api.stripe.client, without a sidecar

            stripe.put(fixtures.customer("cus_1"), fixtures.price("price_1"))    # objects that exist there
            stripe.fail(path="/v1/billing/meter_events", kind="status", status=429, retry_after=1, times=3)
            stripe.fail(path="/v1/checkout", kind="close", when="after")         # the work is done, its answer lost
            stripe.requests("/v1/billing/meter_events")       # what was asked: method, path, params, status, …
            stripe.all("billing.meter_event")                 # what there is now; also "invoiceitem", …
            stripe.remove("billing.meter_event", identifier)  # lost at Stripe
            stripe.pay(session_id, copies=2, order="shuffled")                   # somebody pays, and webhooks come
            stripe.bill(subscription_id, start, end)          # its invoice, with metered lines, and the webhooks
            stripe.kill(); stripe.start()                     # with keep= it knows what it knew

Kinds of faults: status, hang, close, slow (milliseconds), duplicate (of a meter event's identifier). Webhooks go where
`stripe.send_webhooks_to(url)` says, signed with `stripe.secret`. All of it: api/stripe/standin/control.py.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from tests.harness import free_port

KEY: Final = "sk_test_of_the_stand_in"
SECRET: Final = "whsec_of_the_stand_in"
START_SECONDS: Final = 60.0

Json = dict[str, Any]


@dataclass
class StripeServer:
    """`key` and `url` are what STRIPE_SECRET_KEY and STRIPE_API_BASE are set to."""

    port: int
    arguments: tuple[str, ...] = ()
    key: str = KEY
    secret: str = SECRET
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it answers."""
        command = [
            sys.executable,
            "-m",
            "api.stripe.standin",
            "--port",
            str(self.port),
            "--webhook-secret",
            self.secret,
        ]
        self._process = subprocess.Popen([*command, *self.arguments])
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self._process.poll() is None, "the stand-in did not start"
            try:
                httpx.get(f"{self.url}/_control/requests", trust_env=False)
                return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError("the stand-in does not answer")

    def stop(self) -> None:
        """In good order, so that what it has started stops, too."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """kill -9. Without `keep` it knows nothing afterwards."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def put(self, *objects: Json) -> None:
        """Objects that exist at Stripe: of api.stripe.fixtures."""
        self._control("POST", "objects", {"objects": list(objects)})

    def all(self, kind: str) -> list[Json]:
        """All objects of a kind, in the order in which they came: `billing.meter_event`, `invoiceitem`, …"""
        found: list[Json] = self._control("GET", f"objects?object={kind}")
        return found

    def remove(self, kind: str, id: str) -> None:
        self._control("DELETE", f"objects?object={kind}&id={id}")

    def forget(self) -> None:
        """All that it knows, what it was asked, and what was to fail."""
        self._control("DELETE", "data")

    def fail(self, *, kind: str, path: str = "/", times: int | None = 1, **members: Any) -> None:
        """The next `times` calls whose path begins with `path` fail; None: all, until `mend`. See standin/faults.py."""
        self._control("POST", "faults", {"kind": kind, "path": path, "times": times, **members})

    def mend(self) -> None:
        self._control("DELETE", "faults")

    def requests(self, path: str = "/") -> list[Json]:
        """What it was asked, the oldest first. status 0: there was no answer."""
        found: list[Json] = self._control("GET", f"requests?path={path}")
        return found

    def forget_requests(self) -> None:
        self._control("DELETE", "requests")

    def send_webhooks_to(self, url: str) -> None:
        self._control("POST", "settings", {"webhook_url": url, "webhook_secret": self.secret})

    def set(self, **settings: Any) -> None:
        """`ahead`: of the clock, in seconds. `meter_events_a_second`: more are refused with 429."""
        self._control("POST", "settings", settings)

    def pay(self, session: str, *, copies: int = 1, order: str = "as it happened") -> list[Json]:
        """Somebody pays a checkout. What went out, and how it was answered. `order`: also reversed, or shuffled."""
        return self._delivered(f"pay/{session}", {"copies": copies, "order": order})

    def bill(self, subscription: str, start: int, end: int) -> list[Json]:
        """The invoice of that time, paid: fee, what meters have counted, and items that waited."""
        return self._delivered(f"bill/{subscription}", {"start": start, "end": end})

    def send(self, event: Json, *, copies: int = 1) -> list[Json]:
        return self._delivered("send", {"event": event, "copies": copies})

    def report_errors(self, identifiers: Mapping[str, str], **members: Any) -> list[Json]:
        """Stripe could not use these meter events: it says so in a thin event, whose data has to be fetched."""
        return self._delivered("meter_errors", {"identifiers": dict(identifiers), **members})

    def _delivered(self, path: str, content: Json) -> list[Json]:
        found: list[Json] = self._control("POST", path, content)["delivered"]
        return found

    def _control(self, method: str, path: str, content: Json | None = None) -> Any:
        response = httpx.request(method, f"{self.url}/_control/{path}", json=content, timeout=120, trust_env=False)
        assert response.is_success, response.text
        return response.json()


@contextmanager
def stripe_server(*, keep: Path | None = None, with_localstripe: bool = False) -> Iterator[StripeServer]:
    """It runs until the end of the block. `keep`: a file, so that it knows after a kill what it knew before."""
    arguments = [
        *(("--state", str(keep)) if keep is not None else ()),
        *(("--localstripe",) if with_localstripe else ()),
    ]
    server = StripeServer(free_port(), tuple(arguments))
    server.start()
    try:
        yield server
    finally:
        server.stop()
