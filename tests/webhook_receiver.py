"""The provider's application in tests: a real HTTP server that keeps what it is sent, and answers as it is told to."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Final

from api.database import Database as SidecarDatabase
from api.webhooks.receiver import Receiver
from api.webhooks.sending import AT_ONCE, WebhookSender
from api.webhooks.signing import Signer
from tests.harness import Database

SECRET: Final = f"whsec_{b64encode(bytes(range(32))).decode()}"


@dataclass(frozen=True)
class Delivery:
    """A request that came, byte for byte."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(frozen=True)
class Reply:
    """`status` None: hang up without an answer. `after`: not before this is set."""

    status: int | None = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: Event | None = None


@dataclass
class Application:
    url: str
    came: list[Delivery] = field(default_factory=list)
    reply: Callable[[Delivery], Reply] = lambda _: Reply()

    @property
    def ids(self) -> list[str]:
        return [delivery.id for delivery in self.came]


@contextmanager
def application(reply: Callable[[Delivery], Reply] | None = None) -> Iterator[Application]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            delivery = Delivery(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            made.came.append(delivery)
            answer = made.reply(delivery)
            if answer.after is not None:
                answer.after.wait(60)
            if answer.status is None:
                self.close_connection = True
                return
            try:
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)
            except OSError:  # whoever asked is gone
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    made = Application(f"http://127.0.0.1:{server.server_address[1]}/webhooks")
    if reply is not None:
        made.reply = reply
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def sending(database: Database, url: str, secret: str = SECRET) -> Iterator[WebhookSender]:
    """The sidecar's part that sends messages, and none of its others, until the end of the block."""
    started = Event()
    running: list[tuple[asyncio.AbstractEventLoop, WebhookSender]] = []

    async def run() -> None:
        asked = SidecarDatabase(database.sidecar, pool_size=4)
        sender = WebhookSender(asked, Receiver(url, Signer(secret), AT_ONCE))
        running.append((asyncio.get_running_loop(), sender))
        started.set()
        try:
            await sender.run()
        finally:
            await asked.close()

    thread = Thread(target=asyncio.run, args=(run(),))
    thread.start()
    started.wait(60)
    [(loop, sender)] = running
    try:
        yield sender
    finally:
        loop.call_soon_threadsafe(sender.close)
        thread.join()
