"""A reader of the guides: has a copy of the project, types what the guides say, and sees what is printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from api.settings import ENV_FILE, PROJECT
from api.stack.installations import binaries
from tests.guides.blocks import Block
from tests.own_tables import own_migrations, own_tables

PATIENCE_SECONDS: Final = 30.0
_HERE: Final = Path(__file__).parent
_SESSIONS: Final = {"python": (sys.executable, "session.py"), "js": ("node", "session.cjs")}
_COPIED: Final = (
    "api", "migrations", "sql", "policies", "Makefile", "README.md", "pyproject.toml", "requirements.lock",
    "package.json", "package-lock.json", ".env.example",
)  # fmt: skip
_INSTALLED: Final = (".venv", "node_modules")
_KEEP_EXPORTS: Final = "trap 'export -p > \"$EXPORTS\"' EXIT\n"


@dataclass
class Reader:
    """Close it. `addresses` are those that the guides name, and the ones that stand for them here."""

    project: Path
    major: int
    addresses: Mapping[str, str]
    environment: dict[str, str]
    _sessions: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def follow(self, block: Block) -> None:
        """Do what the block says. AssertionError when something else happens than the guide says."""
        __tracebackhide__ = True
        if block.file:
            path = self.project / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            return
        deadline = time.monotonic() + PATIENCE_SECONDS
        failed, output = self._run(block)
        while block.until and not block.prints(output) and time.monotonic() < deadline:
            time.sleep(0.2)
            failed, output = self._run(block)
        assert failed == block.fails, f"{block} {'failed' if failed else 'did not fail'}:\n{block.text}\n{output}"
        assert block.prints(output), f"{block}:\n{block.text}\nprinted\n{output}\nwhere the guide shows\n{block.shown}"

    def finish_guide(self) -> None:
        """Forget what the snippets of a guide have made: the next guide is read by somebody else."""
        for session in self._sessions.values():
            session.communicate(timeout=30)
        self._sessions.clear()

    def _run(self, block: Block) -> tuple[bool, str]:
        text = block.text
        for named, real in self.addresses.items():
            text = text.replace(named, real)
        if block.language == "sh":
            failed, output = self._run_shell(text)
        elif block.language == "sql":
            failed, output = self._run_psql(text)
        else:
            failed, output = self._run_in_session(block.language, text)
        for named, real in self.addresses.items():
            output = output.replace(real, named)
        return failed, output

    def _run_shell(self, text: str) -> tuple[bool, str]:
        """What a block exports is there in those that follow, as it would be in the reader's terminal."""
        exports = self.project / ".exports"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", _KEEP_EXPORTS + text],
            cwd=self.project,
            env=self.environment | {"EXPORTS": str(exports)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        told = subprocess.run(
            ["bash", "-c", f'. "{exports}"; env -0'], env={}, capture_output=True, text=True, check=True
        )
        self.environment = dict(line.split("=", 1) for line in told.stdout.split("\0") if line)
        return done.returncode != 0, done.stdout

    def _run_psql(self, text: str) -> tuple[bool, str]:
        """As typed into `goldleaves psql`."""
        stack = json.loads((self.project / ".goldleaves" / "stack.json").read_text())
        done = subprocess.run(
            [binaries(self.major) / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stack["database_url"]],
            input=text,
            env=self.environment,
            cwd=self.project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode != 0, done.stdout

    def _run_in_session(self, language: str, text: str) -> tuple[bool, str]:
        session = self._sessions.get(language)
        if session is None:
            program, script = _SESSIONS[language]
            session = self._sessions[language] = subprocess.Popen(
                [program, _HERE / script],
                cwd=self.project,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert session.stdin and session.stdout
        print(json.dumps({"code": text, "environment": self.environment}), file=session.stdin, flush=True)
        answer = json.loads(session.stdout.readline())
        return answer["failed"], answer["output"]


def copy_project(target: Path) -> None:
    """A clone in which everything is installed: the code is a copy, what was installed is shared.

    Without tables of your own, since the guides speak of a project that has none yet.
    """
    for name in _COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)
    for path in (
        *(f"migrations/{path.name}" for path in own_migrations()),
        *(f for t in own_tables() for f in t.files),
    ):
        (target / path).unlink()
    for name in _INSTALLED:
        (target / name).mkdir()
        for installed in (PROJECT / name).iterdir():
            if installed.name != ".installed":
                (target / name / installed.name).symlink_to(installed)
        (target / name / ".installed").touch()  # for make: newer than what says what to install


def reader_environment(project: Path, ports: Mapping[str, str]) -> dict[str, str]:
    """That of the tests, which have taken out every setting. The copy's own code comes before the installed one."""
    inherited = {name: value for name, value in os.environ.items() if name != ENV_FILE}
    return inherited | {"PYTHONPATH": str(project), "NO_COLOR": "1", "COLUMNS": "120"} | dict(ports)
