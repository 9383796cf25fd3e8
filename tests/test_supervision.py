"""What dies is started again, and the user is told: the real command, real kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from uuid import uuid4

import httpx
import pytest

from api.settings import Settings
from api.stack.parts import PARTS
from api.stack.processes import Record
from api.stack.services import find_postgrest
from api.stack.supervision import Supervision
from api.stack.supervisor import NAME as SUPERVISOR
from tests.observe import eventually
from tests.test_stack import Command, execute, new_command, traces

WITHIN = 60  # seconds, on a machine that does much else


@pytest.fixture(scope="module")
def command() -> Iterator[Command]:
    with new_command() as command:
        command.up()
        yield command


@pytest.fixture
def goldleaves(command: Command) -> Command:
    """The command, with its stack up and everything in it well."""
    command.up()
    return command


def log(command: Command) -> str:
    return command.state.log(SUPERVISOR).read_text()


def restarts(command: Command, part: str) -> int:
    supervision = Supervision.read(command.state)
    assert supervision
    return supervision.parts[part].restarts


def kill(command: Command, *names: str) -> None:
    pids = command.pids() | {SUPERVISOR: supervisor_pid(command)}
    for name in names:
        os.kill(pids[name], signal.SIGKILL)


def supervisor_pid(command: Command) -> int:
    record = Record.read(SUPERVISOR, command.state)
    return record.pid if record else 0


def is_well(command: Command) -> bool:
    try:
        return httpx.get(f"{command.endpoints().gateway_url}/health", trust_env=False, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def comes_back(command: Command, before: dict[str, int], names: tuple[str, ...]) -> None:
    """Those parts run as new processes, and the whole is well."""

    def is_back() -> bool:
        after = command.pids()
        return all(after.get(name, before[name]) != before[name] for name in names) and is_well(command)

    assert eventually(is_back, bool, seconds=WITHIN), log(command)


def ask(command: Command, token: str, over: Event, acknowledged: list[str]) -> None:
    """Read until it is over, and note the ids of the requests that were answered."""
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{command.endpoints().gateway_url}/api/v1/cases?limit=1"
    with httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
        while not over.is_set():
            request_id = f"killed-{uuid4()}"
            try:
                answer = client.get(url, headers={"X-Request-ID": request_id})
            except httpx.TransportError:
                continue
            finally:
                time.sleep(0.01)
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200:
                acknowledged.append(request_id)


def test_what_is_killed_comes_back_and_nothing_acknowledged_is_lost(goldleaves: Command) -> None:
    token = goldleaves.succeed("token", "--sub", "kim", "--email", "kim@example.com").strip()
    over, acknowledged = Event(), list[str]()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, goldleaves, token, over, acknowledged)
        try:
            for names in (("sidecar",), ("postgrest",), ("postgres",), PARTS):
                enough = len(acknowledged) + 20
                assert eventually(lambda: len(acknowledged), enough.__le__, seconds=WITHIN) >= enough
                before = goldleaves.pids()
                kill(goldleaves, *names)
                comes_back(goldleaves, before, names)
        finally:
            over.set()
        asking.result()

    def metered() -> list[str]:
        query = "select request_id from metering.usage_events where event_name = 'api.request'"
        rows = execute(goldleaves.endpoints(), query)
        return [str(request_id) for (request_id,) in rows]

    counts = Counter(eventually(metered, set(acknowledged).issubset, seconds=WITHIN))
    assert [request_id for request_id in acknowledged if counts[request_id] != 1] == []

    told = log(goldleaves)
    for name, title in (("sidecar", "Sidecar"), ("postgrest", "PostgREST"), ("postgres", "PostgreSQL")):
        assert restarts(goldleaves, name) >= 2
        assert re.search(rf"^\S+ \S+ {title}.* ended; starting it again in 0\.5 s$", told, re.MULTILINE), told
        assert re.search(rf"^\S+ \S+ {title}.* was killed by SIGKILL; starting it again in ", told, re.MULTILINE)
        assert re.search(rf"^\S+ \S+ {title}.* is back$", told, re.MULTILINE)
    shown = goldleaves.succeed("status")
    assert re.search(r"^postgrest +running +\d+ +[2-9] ", shown, re.MULTILINE), shown
    assert re.search(r"^postgrest was killed by SIGKILL at \d{4}-", shown, re.MULTILINE), shown


def test_a_part_that_cannot_start_is_named_with_its_log_and_the_others_go_on(
    goldleaves: Command, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    postgrest = tmp_path / "postgrest"
    postgrest.write_text(
        f"#!/bin/sh\nif [ -e '{broken}' ]; then echo it is broken; exit 3; fi\nexec '{find_postgrest(Settings())}'\n"
    )
    postgrest.chmod(0o755)
    try:
        goldleaves.up(POSTGREST_BIN=str(postgrest))
        before = goldleaves.pids()
        broken.touch()
        kill(goldleaves, "postgrest")
        assert eventually(lambda: log(goldleaves).count("it is broken"), lambda times: times >= 2, seconds=WITHIN) >= 2
        told = log(goldleaves)
        assert re.search(r"PostgREST ended with exit code 3; starting it again in 1 s\n  it is broken\nLog: ", told)
        assert re.search(r"PostgREST ended with exit code 3; starting it again in 2 s\n  it is broken\nLog: ", told)

        kill(goldleaves, "sidecar")
        sidecar_is_back = eventually(
            lambda: goldleaves.pids().get("sidecar", before["sidecar"]) != before["sidecar"], bool, seconds=WITHIN
        )
        assert sidecar_is_back
        assert goldleaves.pids()["postgres"] == before["postgres"]
        broken.unlink()
        comes_back(goldleaves, before, ("postgrest",))
    finally:
        broken.touch()
        kill(goldleaves, "postgrest")
        goldleaves.succeed("down")
    assert traces(goldleaves.state) == [], "also what was about to be started again"


def test_a_supervisor_that_died_is_noticed_and_replaced(goldleaves: Command) -> None:
    first = supervisor_pid(goldleaves)
    kill(goldleaves, SUPERVISOR)
    assert "The supervisor had died" in goldleaves.succeed("status")
    second = supervisor_pid(goldleaves)
    assert second != first
    assert "had died" not in goldleaves.succeed("status")

    kill(goldleaves, SUPERVISOR)
    assert re.search(r"Supervisor .*had died", goldleaves.succeed("up"))
    before = goldleaves.pids()
    kill(goldleaves, "sidecar")
    comes_back(goldleaves, before, ("sidecar",))


def test_following_tells_what_happens_and_ends_with_the_stack(goldleaves: Command) -> None:
    program = Path(sys.executable).with_name("goldleaves")
    with subprocess.Popen(
        [program, "up", "--follow"],
        env=os.environ | goldleaves.variables,
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout
        try:
            for line in following.stdout:
                if line.startswith("Watching the stack."):
                    break
            kill(goldleaves, "sidecar")
            told = []
            for line in following.stdout:
                told.append(line)
                if "Sidecar is back" in line:
                    break
            assert re.search(r"Sidecar \S.*; starting it again in", "".join(told))
            following.send_signal(signal.SIGINT)
            following.stdout.read()
            assert following.wait(timeout=WITHIN) == 0
        finally:
            following.kill()
    assert traces(goldleaves.state) == []
