"""A copy of the project whose policy files can be edited, the database that it is released to, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from api.migrations import MigrationReport, migrate
from api.policies.rollout import commands
from api.release import states
from api.release.loader import begin
from api.settings import PROJECT, Settings
from tests.harness import Database


class Checkout:
    """`goldleaves policies …` runs in the directory of the copy, as goldleaves_migrator."""

    def __init__(self, root: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.database = database
        for folder in ("sql", "policies", "migrations"):
            shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(commands, "PROJECT", root)
        monkeypatch.chdir(root)

    def policies(self, *arguments: str, **environment: str) -> Result:
        variables = {"MIGRATION_DATABASE_URL": self.database.migrator, "COLUMNS": "200", **environment}
        return CliRunner().invoke(app, ["policies", *arguments], env=variables)

    def actions(self) -> list[dict[str, Any]]:
        """Of the plan that was made last."""
        listed: list[dict[str, Any]] = json.loads((self.root / "plan.json").read_text())["actions"]
        return listed

    def migrate(self) -> MigrationReport:
        return migrate(self.database.migrator, Settings(), self.root)

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new))

    def execute(self, statement: str) -> None:
        """As a superuser, like somebody in psql."""
        with self.database.connect() as connection:
            connection.execute(statement.encode())

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            return connection.execute(statement.encode()).fetchall()

    def state(self) -> dict[str, Any]:
        """All that a release writes down, as it is now."""
        with self.database.connect(autocommit=False) as connection:
            begin(connection)
            filed = [path.stem for path in (PROJECT / "policies").glob("*.sql")]
            return states.tables(connection, filed) | states.everything_else(connection, [], filed)
