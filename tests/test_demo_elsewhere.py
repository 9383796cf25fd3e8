"""`goldleaves demo --against URL`: the story on a gateway that is not the command's own stack."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import RunningStack, free_port


def demo(url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("goldleaves"), "demo", "--against", url],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_can_be_played_twice_and_leaves_sql_out(stack: RunningStack) -> None:
    for url in (stack.gateway_url, f"{stack.gateway_url}/"):
        done = demo(url, JWT_SECRET=stack.jwt_secret)
        assert done.returncode == 0, done.stderr
        assert "That try is left out" in done.stdout
        assert "it starts a sidecar of its own" in done.stdout, "where no stack is ours, none is started"
        assert "make up" not in done.stdout


def test_a_superuser_tries_sql_when_there_is_one(stack: RunningStack) -> None:
    variables = {
        "JWT_SECRET": stack.jwt_secret,
        "ADMIN_DATABASE_URL": stack.database.superuser,
        "MIGRATION_DATABASE_URL": stack.database.migrator,  # names the database
    }
    done = demo(stack.gateway_url, **variables)
    assert done.returncode == 0, done.stderr
    assert "a superuser at psql" in " ".join(done.stdout.split())
    assert "That try is left out" not in done.stdout
    managed = demo(stack.gateway_url, **variables | {"ADMIN_DATABASE_URL": stack.database.migrator})
    assert "That try is left out" in managed.stdout


@pytest.mark.parametrize("case", ["no URL", "nobody", "another path", "no secret", "another secret", "no database"])
def test_a_mistake_is_one_line(stack: RunningStack, case: str) -> None:
    closed = free_port()
    mistakes: dict[str, tuple[str, dict[str, str], str]] = {
        "no URL": ("nonsense", {}, "is no URL; write http://127.0.0.1:8000"),
        "nobody": (f"http://127.0.0.1:{closed}", {}, f"nobody answers at http://127.0.0.1:{closed}"),
        "another path": (f"{stack.gateway_url}/api", {}, "is no Goldleaves gateway"),
        "no secret": (stack.gateway_url, {"JWT_SECRET": ""}, "JWT_SECRET is not set."),
        "another secret": (stack.gateway_url, {"JWT_SECRET": secrets.token_hex(32)}, "refuses tokens signed with this"),
        "no database": (
            stack.gateway_url,
            {"ADMIN_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{closed}/postgres"},
            "ADMIN_DATABASE_URL, which one scene would use: ",
        ),
    }
    url, variables, line = mistakes[case]
    done = demo(url, **{"JWT_SECRET": stack.jwt_secret, **variables})
    assert done.returncode == 1
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
