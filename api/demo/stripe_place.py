"""Where the scene with Stripe is played: a stand-in for it, and beside the stack's sidecar another one with a key.

Any number of sidecars may run on one database, so the stack itself is left as it is. The stand-in keeps what it knows,
as an account at Stripe would: what it was told in one story is still there in the next.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx
from pydantic import SecretStr

from api.demo.people import DemoError
from api.settings import PROJECT, Settings
from api.stack.endpoints import DATABASE, MIGRATOR, http_url, postgres_url
from api.stack.parts import database_url, jwt_secret
from api.stack.processes import Part, answers_ok, start, stop, wait_until_ready
from api.stack.services import sidecar_part
from api.stack.state import StateDir

DIRECTORY: Final = "demo-stripe"
LOOPBACK: Final = "127.0.0.1"
KEY: Final = "sk_test_demo"
WEBHOOK: Final = "/api/billing/stripe_webhook"


@dataclass(frozen=True)
class StripePlace:
    """`gateway_url` is that of the sidecar with the key; `url` Stripe's, as far as this story goes."""

    gateway_url: str
    url: str
    key: str
    migration_url: str = field(repr=False)

    def put(self, *objects: dict[str, Any]) -> None:
        """What the provider has made in Stripe's dashboard."""
        self._control("objects", {"objects": list(objects)})

    def pay(self, session: str, **how: Any) -> list[dict[str, Any]]:
        """Somebody pays on Stripe's page. Returns the webhooks that it sent, and how each was answered."""
        delivered: list[dict[str, Any]] = self._control(f"pay/{session}", how)["delivered"]
        return delivered

    def _control(self, path: str, content: dict[str, Any]) -> Any:
        answer = httpx.post(f"{self.url}/_control/{path}", json=content, timeout=60, trust_env=False)
        if not answer.is_success:
            raise DemoError(f"the stand-in for Stripe answered {answer.status_code}: {answer.text}")
        return json.loads(answer.text)


@contextmanager
def stripe_place(settings: Settings) -> Iterator[StripePlace]:
    """Both run until the end of the block. The stack whose settings these are has to run."""
    state = StateDir(settings.state_dir / DIRECTORY)
    state.create()
    known = StateDir(settings.state_dir).ensure_secrets()
    gateway_port, stripe_port = _free_port(), _free_port()
    stripe_url, webhook_secret = http_url(LOOPBACK, stripe_port), f"whsec_{secrets.token_hex(16)}"
    gateway_url = http_url(settings.host, gateway_port)
    stripe = Part(
        name="stripe",
        title="Stand-in for Stripe",
        command=(
            *(sys.executable, "-m", "api.stripe.standin", "--port", str(stripe_port)),
            *("--webhook-url", f"{gateway_url}{WEBHOOK}", "--webhook-secret", webhook_secret),
            *("--state", str((state.root / "stripe.jsonl").resolve())),
        ),
        is_ready=lambda: answers_ok(LOOPBACK, stripe_port, "/_control/requests"),
        directory=PROJECT,
    )
    sidecar = sidecar_part(
        settings.model_copy(
            update={
                "gateway_port": gateway_port,
                "spool_dir": state.spool.resolve(),
                "stripe_secret_key": SecretStr(KEY),
                "stripe_publishable_key": None,
                "stripe_webhook_secret": SecretStr(webhook_secret),
                "stripe_api_base": stripe_url,
            }
        ),
        database_url(settings, "sidecar", known.sidecar),
        jwt_secret(settings, known),
        state.spool.resolve(),
    )
    with ExitStack() as running:
        for part in (stripe, replace(sidecar, title="Sidecar with a key")):
            running.callback(stop, part.name, state)
            wait_until_ready(part, start(part, state), state)
        migrator = postgres_url(MIGRATOR, known.goldleaves_migrator, settings.host, settings.postgres_port, DATABASE)
        yield StripePlace(gateway_url, stripe_url, KEY, migrator)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
