"""localstripe, a process of its own, for what the stand-in does not have: one base URL serves the SDK."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx
from starlette.requests import Request
from starlette.responses import Response

START_SECONDS: Final = 30.0
HOST: Final = "127.0.0.1"
# Its own command listens on all addresses, and keeps what it knows in a file that all who run it share.
_SERVE: Final = """
import sys
from aiohttp import web
from localstripe import server
server.store.dump_to_disk = lambda: None
web.run_app(server.app, host=sys.argv[1], port=int(sys.argv[2]), print=None)
"""
_KEPT: Final = ("authorization", "content-type")


@dataclass(frozen=True)
class Localstripe:
    url: str

    async def answer(self, request: Request) -> Response:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            response = await client.request(
                request.method,
                f"{self.url}{request.url.path}",
                params=request.url.query,
                content=await request.body(),
                headers={name: value for name, value in request.headers.items() if name in _KEPT},
            )
        return Response(response.content, response.status_code, media_type=response.headers.get("content-type"))

    async def send_webhooks_to(self, url: str, secret: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            told = await client.post(f"{self.url}/_config/webhooks/goldleaves", json={"url": url, "secret": secret})
            told.raise_for_status()


@contextmanager
def localstripe() -> Iterator[Localstripe]:
    """It runs until the end of the block."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", _SERVE, HOST, str(port)])  # noqa: S603
    try:
        _await(process, port)
        yield Localstripe(f"http://{HOST}:{port}")
    finally:
        process.terminate()
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(int(START_SECONDS / 0.05)):
        if process.poll() is not None:
            raise RuntimeError("localstripe did not start; is it installed? pip install -e '.[dev]'")
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"localstripe does not answer after {START_SECONDS:.0f} s")
