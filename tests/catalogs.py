"""What a database is made of, as text that can be compared."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from api.stack.installations import binaries
from tests.conftest import MAJOR
from tests.harness import Database

# Random, or the name of the database.
_UNLIKE = re.compile(r"^\\(?:un)?restrict .*$|^\\connect .*$|^-- Name: .*; Type: DATABASE.*$", re.MULTILINE)


def catalog_of(database: Database) -> str:
    """Everything but the rows: tables, constraints, indexes, functions, triggers, policies and their switches, and
    comments, with owners, grants and default privileges, those of the database itself included.
    """
    command: list[str | Path] = [binaries(MAJOR) / "pg_dump", "--schema-only", "--create", database.superuser]
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return _UNLIKE.sub("", dump).replace(database.name, "this_database")
