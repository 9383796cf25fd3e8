"""psql on the database of the running stack, the one that belongs to its server."""

from __future__ import annotations

import os
from collections.abc import Sequence

from api.settings import Settings
from api.stack.endpoints import DATABASE, SUPERUSER, StackError
from api.stack.installations import binaries
from api.stack.processes import find
from api.stack.state import StateDir


def become_psql(settings: Settings, arguments: Sequence[str]) -> None:
    """Replace this process by psql, connected as the superuser. Raises StackError when Postgres does not run.

    The connection goes in by the environment: arguments can be seen by everybody on the machine.
    """
    state = StateDir(settings.state_dir)
    secrets = state.read_secrets()
    if secrets is None or find("postgres", state) is None:
        raise StackError("No stack runs here. Run `goldleaves up` first, or psql with the address of your database.")
    connection = {
        "PGHOST": settings.host,
        "PGPORT": str(settings.postgres_port),
        "PGUSER": SUPERUSER,
        "PGPASSWORD": secrets.postgres,
        "PGDATABASE": DATABASE,
    }
    program = binaries(settings.postgres_version) / "psql"
    os.execve(program, [str(program), *arguments], os.environ | connection)  # noqa: S606 - no shell is what we want
