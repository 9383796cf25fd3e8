"""Metering outlives what an operating system may refuse: room for the log, room for a segment, descriptors."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from api.app import create_app
from api.settings import Settings
from api.spool import Spool, read_segment
from api.stack.processes import find
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import RunningStack
from tests.observe import eventually, metered_ids, spool_state, wait_until_shipped
from tests.test_spool_shipping import sidecar_cut_off

ROOMY = 64 * 1024 * 1024
LOG_BYTES = 1024 * 1024
DESCRIPTORS = 64

SMALL_FILES = f"ulimit -f 32; exec '{sys.executable}' -m api.serve"

STARVING = f"""
import os, resource, signal
from api.serve import main

taken = []

def take(*_):
    resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass

def give_back(*_):
    while taken:
        os.close(taken.pop())

signal.signal(signal.SIGUSR1, take)
signal.signal(signal.SIGUSR2, give_back)
raise SystemExit(main())
"""


def records_in(directory: Path) -> list[bytes]:
    return [record for path in sorted(directory.glob("*.spool")) for record in read_segment(path)[0]]


def run(script: str, directory: Path) -> None:
    """In a process of its own, since its limits are lowered."""
    done = subprocess.run([sys.executable, "-c", script, str(directory)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@contextmanager
def restarted(stack: RunningStack, *command: str) -> Iterator[RunningStack]:
    """The stack, its sidecar started again by another command."""
    stack.stop()
    running = replace(stack, parts={**stack.parts, "sidecar": replace(stack.parts["sidecar"], command=command)})
    running.start()
    yield running


BEGIN_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from api.spool import Spool
with Spool(Path(sys.argv[1]), 1 << 30) as spool:
    for room in (0, 4):  # nothing of a segment's first bytes fits; then half of them
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        assert not spool.append(b"lost")
        spool.seal()
        assert spool.oldest_sealed() is None
        assert spool.state().pending_bytes == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for number in range(38):
        assert spool.append(b"kept %d" % number)
"""


def test_a_segment_that_cannot_be_begun_costs_no_later_record(tmp_path: Path) -> None:
    run(BEGIN_ON_A_FULL_DISK, tmp_path)
    assert records_in(tmp_path) == [b"kept %d" % number for number in range(38)]
    assert [read_segment(path)[1] for path in tmp_path.glob("*.spool")] == [0]


WITHOUT_DESCRIPTORS = """
import asyncio, os, resource, sys
from pathlib import Path
from api.spool import Spool

synced = set()
really_sync = os.fsync

def sync(descriptor):
    really_sync(descriptor)
    synced.add(os.fstat(descriptor).st_ino)

os.fsync = sync

def open_descriptors():
    count = 0
    for number in range(64):
        try:
            os.fstat(number)
            count += 1
        except OSError:
            pass
    return count

async def main(spool, directory):
    keeping = asyncio.create_task(spool.keep_synced())
    await asyncio.to_thread(int)
    assert spool.append(b"before")
    await asyncio.sleep(0.1)
    usual = open_descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    for number in range(5):
        assert spool.append(b"during %d" % number), spool.state()
        await asyncio.sleep(0.1)
        assert not keeping.done(), keeping
        spool.seal()
        await asyncio.sleep(0.1)
        try:
            taken.append(os.dup(0))  # somebody else is quick to take what becomes free
        except OSError:
            pass
    assert spool.append(b"after")
    await asyncio.sleep(0.1)
    for descriptor in taken:
        os.close(descriptor)
    assert {path.stat().st_ino for path in directory.glob("*.spool")} | {directory.stat().st_ino} <= synced
    assert open_descriptors() <= usual, (usual, open_descriptors())
    assert not keeping.done(), keeping
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)

directory = Path(sys.argv[1])
empty = open_descriptors()
with Spool(directory, 1 << 30) as spool:
    asyncio.run(main(spool, directory))
assert open_descriptors() == empty
"""


def test_without_descriptors_records_are_kept_and_synced_and_nothing_leaks(tmp_path: Path) -> None:
    run(WITHOUT_DESCRIPTORS, tmp_path)
    assert records_in(tmp_path) == [b"before", *(b"during %d" % number for number in range(5)), b"after"]


def test_without_descriptors_requests_are_metered_and_health_answers(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack() as unlimited, restarted(unlimited, sys.executable, "-c", STARVING) as stack:
        organization = make_organization(stack.database)
        asked = [f"starved-{uuid4()}" for _ in range(8)]
        with stack.client(organization["owner"].subject) as client:
            assert client.get("/api/v1/cases").status_code == 200
            assert client.get("/health").status_code == 200
            with starved(stack):
                for request_id in asked:
                    answer = client.get("/api/v1/cases", headers={"X-Request-ID": request_id})
                    assert answer.status_code == 200
                    health = client.get("/health")
                    assert health.status_code in (200, 503), health.text
                    assert health.json()["spool"]["dropped"] == 0, health.text
                    time.sleep(0.15)  # long enough for a segment to be sealed
        wait_until_shipped(stack.state)
        assert set(asked) <= set(metered_ids(stack, organization.id))


@contextmanager
def starved(stack: RunningStack) -> Iterator[None]:
    """The sidecar, begun with STARVING, has no descriptor left."""
    process = find("sidecar", stack.state)
    assert process is not None

    def take_all() -> int:
        """Again, until there are none: a file that was being read then is closed since."""
        process.send_signal(signal.SIGUSR1)
        return process.num_fds()

    assert eventually(take_all, lambda number: number == DESCRIPTORS) == DESCRIPTORS
    try:
        yield
    finally:
        process.send_signal(signal.SIGUSR2)


def test_a_full_log_disk_fails_no_request_and_loses_no_record(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    """No file may grow beyond what the log has already. A segment gets there as well, and then records are dropped."""
    with open_stack() as unlimited:
        organization = make_organization(unlimited.database)
        with (
            restarted(unlimited, "sh", "-c", SMALL_FILES) as stack,
            stack.client(organization["owner"].subject) as client,
        ):
            with stack.state.log("sidecar").open("ab") as log:
                log.write(bytes(LOG_BYTES))
            headers = {"User-Agent": "x" * 256}
            assert client.get("/api/v1/cases").status_code == 200
            with sidecar_cut_off(stack.database):
                statuses = [client.get("/api/v1/cases", headers=headers).status_code for _ in range(200)]
                assert set(statuses) == {200}
                dropped = spool_state(stack)["dropped"]
                assert 0 < dropped < len(statuses)
            wait_until_shipped(stack.state)
            assert len(metered_ids(stack, organization.id)) == 1 + len(statuses) - dropped
        assert unlimited.state.log("sidecar").stat().st_size < LOG_BYTES + 4096, "the log was not full"


async def test_a_part_that_fails_is_started_again_and_health_says_so(
    stack: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_keep_synced = Spool.keep_synced
    starts = 0

    async def fail_first(spool: Spool) -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise RuntimeError("a mistake of ours")
        await really_keep_synced(spool)

    monkeypatch.setattr(Spool, "keep_synced", fail_first)
    settings = Settings(
        database_url=stack.database.sidecar,
        postgrest_url=stack.postgrest_url,
        jwt_secret=SecretStr(stack.jwt_secret),
    )
    with Spool(tmp_path, ROOMY) as spool:
        app = create_app(settings, spool)
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            answer = await client.get("http://sidecar/health")
            assert (answer.status_code, answer.json()["tasks"]) == (503, {"stopped": ["syncing"]})
            async with asyncio.timeout(10):
                while answer.status_code != 200:
                    await asyncio.sleep(0.05)
                    answer = await client.get("http://sidecar/health")
            assert answer.json()["tasks"] == {"stopped": []}
            assert starts == 2


def test_what_postgres_turns_down_is_counted_and_logged_by_code(
    stack: RunningStack, make_organization: MakeOrganization
) -> None:
    organization = make_organization(stack.database)
    event = {
        "event": "api.request",
        "quantity": 1,
        "unit": "request",
        "time": datetime.now(UTC).isoformat(),
        "organization_id": str(organization.id),
        "dimensions": {},
    }
    events = [{**event, "id": "one"}, {**event, "id": "one", "quantity": 2}, {**event, "id": "two", "quantity": -1}]
    stack.stop()
    with Spool(stack.state.spool, ROOMY) as spool:
        for each in [*events, {**event, "id": "three", "organization_id": str(uuid4())}]:
            assert spool.append(json.dumps(each).encode())
    stack.start()
    wait_until_shipped(stack.state)
    assert spool_state(stack)["rejected"] == 3
    lines = [json.loads(line) for line in stack.state.log("sidecar").read_text().splitlines()]
    (warning,) = (line for line in lines if line["event"] == "events_rejected")
    assert warning["codes"] == {"IDEMPOTENCY_CONFLICT": 1, "INVALID_EVENT": 2}
    assert str(organization.id) not in json.dumps(warning)
