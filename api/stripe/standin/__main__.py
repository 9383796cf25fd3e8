"""`python -m api.stripe.standin --port 12111 --webhook-url http://127.0.0.1:8000/api/billing/stripe_webhook …`."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from api.stripe.standin.account import Account, Webhooks
from api.stripe.standin.app import create_app
from api.stripe.standin.handing_on import localstripe
from api.stripe.standin.store import Store


def main(
    port: Annotated[int, typer.Option(help="Where it listens.")],
    host: Annotated[str, typer.Option(help="On loopback, unless told otherwise.")] = "127.0.0.1",
    webhook_url: Annotated[str | None, typer.Option(help="Where events go.")] = None,
    webhook_secret: Annotated[str, typer.Option(help="What signs them.")] = Webhooks.secret,
    state: Annotated[Path | None, typer.Option(help="A file to keep what it knows in.")] = None,
    with_localstripe: Annotated[bool, typer.Option("--localstripe", help="Hand on what it does not have.")] = False,
) -> None:
    """Stand in for Stripe."""
    base_url = f"http://{host}:{port}"
    account = Account(Store(state), Webhooks(webhook_url, webhook_secret), base_url)
    with ExitStack() as stack:
        other = stack.enter_context(localstripe()) if with_localstripe else None
        if other is not None and webhook_url is not None:
            asyncio.run(other.send_webhooks_to(webhook_url, webhook_secret))
        uvicorn.run(create_app(account, other), host=host, port=port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    typer.run(main)
