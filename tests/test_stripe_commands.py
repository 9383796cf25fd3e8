"""`goldleaves stripe …` with a database that is not there, or older than all this: one line, which says what to do."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from api.cli import app
from tests.harness import Database, free_port

COMMANDS = (
    "setup",
    "link acme cus_1",
    "price",
    "events",
    "replay --dead",
    "report",
    "report --resend",
    "reconcile",
    "fixtures trigger invoice.paid --organization acme",
)


def said(command: str, url: str) -> list[str]:
    variables = {
        "MIGRATION_DATABASE_URL": url,
        "STRIPE_SECRET_KEY": "sk_test_none",
        "STRIPE_API_BASE": "http://127.0.0.1:9",
    }
    result = CliRunner().invoke(app, ["stripe", *command.split()], env=variables)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # else it is a traceback
    return result.output.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_that_knows_nothing_of_stripe_is_to_be_migrated(empty_database: Database, command: str) -> None:
    assert said(command, empty_database.migrator) == [
        "This database knows nothing of Stripe yet. Run `goldleaves migrate` first."
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_that_does_not_answer_is_named(command: str) -> None:
    port = free_port()
    (line,) = said(command, f"postgresql://nobody@127.0.0.1:{port}/nothing")
    assert f"port {port} failed" in line
