"""Bring what was saved in sql/, policies/ and migrations/ to the running database."""

from __future__ import annotations

from pathlib import Path

import psycopg

from api import migrations
from api.migrations import MigrationError
from api.release import LoadReport, Tree, load
from api.stack.access import stack_migration_url
from api.stack.endpoints import StackError
from api.stack.stack import Stack


class RunningDatabase:
    """The stack's database. What fails leaves it as it was; raises MigrationError, or StackError when it is away."""

    def __init__(self, stack: Stack, root: Path) -> None:
        self._stack = stack
        self._root = root

    def load(self) -> LoadReport:
        """Load sql/ and policies/, of which the policies that somebody changed by hand are never overwritten."""
        tree = Tree.read(self._root)
        try:
            with psycopg.connect(self._url(), autocommit=True, application_name="goldleaves dev") as connection:
                connection.execute("set client_min_messages = warning")
                return load(connection, tree)
        except psycopg.Error as error:
            raise MigrationError(" ".join((error.diag.message_primary or str(error)).split())) from error

    def status(self) -> migrations.Status:
        return migrations.status(self._url(), self._root)

    def migrate(self) -> migrations.MigrationReport:
        """Apply what is pending, then load sql/ and policies/."""
        return migrations.migrate(self._url(), self._stack.settings, self._root)

    def _url(self) -> str:
        url = stack_migration_url(self._stack.settings)
        if url is None:
            raise StackError("Postgres does not run. `goldleaves up` starts it again.")
        return url
