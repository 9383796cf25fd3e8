"""What goes wrong while the load runs. Each fault ends with a stack that is whole again."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

import httpx
import psutil
import psycopg

from api.stack.parts import PARTS
from api.stack.postgres import prepare_cluster
from api.stack.processes import await_end, find, members, start, stop, wait_until_ready
from bench.stack import BenchStack
from soak.account import Account, Usage
from soak.clients import NAMES, Backend, Load, Sending

_DROPPED: Final = re.compile(r"^goldleaves_spool_dropped_total (\S+)", re.MULTILINE)
_INGEST: Final = "select metering.ingest_events(%s::jsonb, %s::uuid, 'api', 'reject')"
LONGEST_DOWN_SECONDS: Final = 2.0


@dataclass
class Faults:
    stack: BenchStack
    load: Load
    account: Account
    dropped: int = 0  # records that the sidecar says it could not keep
    full: list[tuple[float, float]] = field(default_factory=list)  # from when to when the disk was

    def any(self) -> str:
        """One of them. Returns what it was."""
        faults: tuple[tuple[Callable[[], str], int], ...] = (
            (lambda: self.kill("sidecar"), 5),
            (lambda: self.kill("postgrest"), 3),
            (lambda: self.kill("postgres"), 3),
            (lambda: self.kill(*random.sample(PARTS, 2)), 2),
            (lambda: self.kill(*PARTS), 1),
            (self.restart_postgres, 2),
            (self.terminate_connections, 2),
            (self.hold_a_transaction, 4),
            (self.fill_the_disk, 3),
        )
        chosen, weights = zip(*faults, strict=True)
        what: str = random.choices(chosen, weights)[0]()
        self.account.did(f"fault: {what}")
        return what

    def kill(self, *names: str) -> str:
        """kill -9, and start again some time later."""
        for name in names:
            processes = members(name, self.stack.stack.state)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            await_end(processes)
            stop(name, self.stack.stack.state)
        time.sleep(random.uniform(0, LONGEST_DOWN_SECONDS))
        self._start(*names)
        return f"kill -9 {', '.join(sorted(names))}"

    def restart_postgres(self) -> str:
        """As an operator does: sessions are cut off, and the log is written out."""
        stop("postgres", self.stack.stack.state)
        self._start("postgres")
        return "restart of postgres"

    def terminate_connections(self) -> str:
        with psycopg.connect(self.stack.database_url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where usename in ('sidecar', 'authenticator') and random() < 0.7"
            )
        return "connections terminated"

    def hold_a_transaction(self) -> str:
        """Its events have transaction ids that are old by the time it commits, or it is rolled back."""
        tenant = random.choice(self.load.tenants).id
        usage = tuple(Usage(f"held-{uuid4()}", tenant, NAMES[0], random.randrange(1, 1000), "held") for _ in range(20))
        body = json.dumps({"events": [_event(one) for one in usage]}).encode()
        try:
            with psycopg.connect(self.stack.sidecar_database_url) as connection:
                connection.execute(_INGEST, [body.decode(), tenant])
                time.sleep(random.uniform(1, 6))
                if random.random() < 0.3:
                    connection.rollback()
                    return "transaction held, rolled back"
        except psycopg.OperationalError as error:
            self.account.surprise(f"a held transaction: {error}")
        # Sent again, as by somebody who did not see the commit: this makes none of them twice.
        sending = Sending("after a held transaction", "application/json", body, usage, tenant)
        Backend(self.load).settle(sending)
        return "transaction held, committed"

    def fill_the_disk(self) -> str:
        """No file of the sidecar can grow, as on a full disk: what it cannot keep it counts."""
        before, began = self._dropped(), time.time()
        process = find("sidecar", self.stack.stack.state)
        if process is None:
            raise RuntimeError("the sidecar does not run")
        _, most = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (0, most))
        time.sleep(random.uniform(1, 5))
        process.rlimit(psutil.RLIMIT_FSIZE, (most, most))
        self.full.append((began, time.time()))
        self.dropped += self._dropped() - before
        return "disk full"

    def _start(self, *names: str) -> None:
        """As the supervisor does."""
        stack = self.stack.stack
        for part in (stack.part(name) for name in PARTS if name in names):
            if part.name == "postgres" and (secrets := stack.state.read_secrets()) is not None:
                prepare_cluster(stack.settings, stack.state, secrets, print)
            wait_until_ready(part, start(part, stack.state), stack.state)

    def _dropped(self) -> int:
        for _ in range(100):
            with suppress(httpx.TransportError):
                answer = httpx.get(f"{self.stack.gateway_url}/metrics", timeout=60, trust_env=False)
                if (match := _DROPPED.search(answer.text)) is not None:
                    return int(float(match[1]))
            time.sleep(0.1)
        raise RuntimeError("the sidecar does not say how much it dropped")


def _event(usage: Usage) -> dict[str, object]:
    return {"id": usage.id, "event": usage.name, "quantity": usage.quantity, "user_id": usage.user}
