"""A stack for one benchmark: the embedded one, on free ports, with state of its own that is thrown away."""

from __future__ import annotations

import platform
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psutil
import psycopg
from psycopg import sql
from rich.console import Console

from api.settings import Settings
from api.stack.endpoints import http_url
from api.stack.processes import find, start, stop, wait_until_ready
from api.stack.progress import Progress
from api.stack.services import sidecar_part
from api.stack.stack import Stack
from api.tokens import Role, mint_token


@dataclass(frozen=True)
class BenchStack:
    gateway_url: str
    postgrest_url: str
    database_url: str = field(repr=False)  # the superuser's
    sidecar_database_url: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    stack: Stack

    def token(self, subject: str, role: Role = "member") -> str:
        audience = self.stack.settings.jwt_audience
        return mint_token(self.jwt_secret, subject, role=role, email=f"{subject}@example.com", audience=audience)

    def value(self, query: str, *parameters: object) -> object:
        """The first column of the first row."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            row = connection.execute(query.encode(), parameters).fetchone()
        return row[0] if row else None

    def organization(self, slug: str) -> UUID:
        """A new organization, without members: events name it themselves."""
        insert = """
          with owner as (insert into tenancy.users (subject) values (%s) returning id)
          insert into tenancy.organizations (kind, name, slug, owner_user_id)
          select 'organization', %s, %s, id from owner
          returning id
        """
        return UUID(str(self.value(insert, slug, slug, slug)))

    def configure(self, settings: Mapping[str, str]) -> None:
        """Restart Postgres with these settings."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            for name, value in settings.items():
                connection.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier(name), value))
        part, state = self.stack.part("postgres"), self.stack.state
        stop(part.name, state)
        wait_until_ready(part, start(part, state), state)

    def vacuum(self) -> None:
        """What Postgres does by itself after a while, so that it does not do it in the middle."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("vacuum analyze")
            connection.execute("checkpoint")

    def stop(self, part: str) -> None:
        stop(part, self.stack.state)

    @contextmanager
    def another_sidecar(self, **settings: object) -> Iterator[str]:
        """Beside the stack's own, with settings of its own, until the end of the block. Returns its URL."""
        [port] = free_ports(1)
        known = self.stack.settings.model_copy(update={"gateway_port": port, **settings})
        spool = self.stack.state.root / "another-spool"
        part = replace(sidecar_part(known, self.sidecar_database_url, self.jwt_secret, spool), name="another-sidecar")
        wait_until_ready(part, start(part, self.stack.state), self.stack.state)
        try:
            yield http_url(known.host, port)
        finally:
            stop(part.name, self.stack.state)

    def processor_seconds(self, part: str) -> float:
        """What the part has used so far, with everything it started."""
        process = find(part, self.stack.state)
        if process is None:
            raise RuntimeError(f"{part} does not run")
        times = [one.cpu_times() for one in (process, *process.children(recursive=True)) if one.is_running()]
        return sum(one.user + one.system for one in times)


@contextmanager
def bench_stack() -> Iterator[BenchStack]:
    with tempfile.TemporaryDirectory(prefix="goldleaves-bench-") as directory:
        gateway, postgrest, postgres = free_ports(3)
        settings = Settings(
            state_dir=Path(directory), gateway_port=gateway, postgrest_port=postgrest, postgres_port=postgres
        )
        stack = Stack(settings, Progress(Console(stderr=True)))
        with stack.borrowed() as endpoints:
            sidecar_url = stack.part("sidecar").environment["DATABASE_URL"]
            yield BenchStack(
                gateway_url=endpoints.gateway_url,
                postgrest_url=endpoints.postgrest_url,
                database_url=endpoints.database_url,
                sidecar_database_url=sidecar_url,
                jwt_secret=endpoints.jwt_secret,
                stack=stack,
            )


def machine() -> str:
    """Processors, memory and what they are, for whoever compares figures."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else "unknown processor"
    return f"{psutil.cpu_count()} processors ({model}), {psutil.virtual_memory().total / 2**30:.0f} GiB"


def when_and_where() -> str:
    """For the head of a table."""
    versions = f"PostgreSQL {Settings().postgres_version}, Python {platform.python_version()}"
    return f"{datetime.now(UTC):%-d %B %Y}, {machine()}, {versions}:"


def free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
