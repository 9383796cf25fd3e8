"""`goldleaves` imports for a command what that command needs, and knows every command that a module registers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from api import cli
from api.policies import cli as policies

# What the rest of the house stands on, and takes most of the time to import.
HEAVY = {"psycopg", "sqlalchemy", "yoyo", "httpx", "starlette", "uvicorn", "structlog"}


@pytest.mark.parametrize("arguments", [["token", "--sub", "ann"], ["token", "--help"], ["psql", "--help"], ["down"]])
def test_what_is_asked_often_imports_little(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from api.cli import app\n"
        f"sys.argv = ['goldleaves', *{arguments}]\n"
        "try:\n"
        "    app()\n"
        "finally:\n"
        "    print(*(name.partition('.')[0] for name in sys.modules), file=sys.stderr)\n"
    )
    environment = os.environ | {"STATE_DIR": str(tmp_path), "JWT_SECRET": "long-enough-to-sign-tokens-with-it"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.split())
    assert "typer" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("commands", [cli.COMMANDS, policies.COMMANDS], ids=["goldleaves", "policies"])
def test_every_command_that_is_registered_is_named(commands: Mapping[str, str]) -> None:
    for module in set(commands.values()):
        registered = set(get_group(import_module(module).commands).commands)
        assert registered == {name for name, where in commands.items() if where == module}, module


def test_help_lists_all_commands() -> None:
    for arguments, commands in (([], cli.COMMANDS), (["policies"], policies.COMMANDS)):
        shown = CliRunner().invoke(cli.app, [*arguments, "--help"]).output
        first = [line.split()[1] for line in shown.splitlines() if line.startswith("│ ") and line[2].isalpha()]
        assert first == list(commands)


def test_who_mistypes_is_told_what_is_similar() -> None:
    for arguments, meant in ((["polices"], "policies"), (["policies", "verifi"], "verify")):
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 2
        assert f"Did you mean '{meant}'" in done.output
