"""The database of the stack: made, migrated, and only then opened. Apart, since what migrates takes long to import."""

from __future__ import annotations

import psycopg

from api.migrations import MigrationReport, migrate
from api.settings import Settings
from api.stack import bootstrap
from api.stack.endpoints import MIGRATOR, StackError, url_host
from api.stack.parts import database_url
from api.stack.postgres import superuser_url
from api.stack.state import Secrets, StateDir


def prepare_database(settings: Settings, state: StateDir, secrets: Secrets) -> MigrationReport:
    """Make the migrator and the database, migrate, and only then let anybody in."""
    _check_superuser(settings, state, secrets)
    server_url = superuser_url(settings, secrets)
    bootstrap.create_migrator(server_url, secrets.goldleaves_migrator)
    bootstrap.create_database(server_url)
    report = migrate(database_url(settings, MIGRATOR, secrets.goldleaves_migrator), settings)
    bootstrap.set_passwords(server_url, secrets.of_services())
    return report


def _check_superuser(settings: Settings, state: StateDir, secrets: Secrets) -> None:
    """Raise StackError when the secrets are not those of this database."""
    try:
        psycopg.connect(superuser_url(settings, secrets)).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" not in str(error):
            raise StackError(f"Cannot connect to Postgres on {url_host(settings.host)}: {error}") from None
        raise StackError(
            f"{state.secrets_file} is not the one that {state.data} was made with. "
            f"Restore it, or remove {state.root} to start anew without the data."
        ) from None
