"""What a command needs to reach the running stack. Imports nothing that migrates: `goldleaves token` is to be quick."""

from __future__ import annotations

from api.settings import Settings
from api.stack.endpoints import DATABASE, MIGRATOR, postgres_url
from api.stack.processes import find
from api.stack.state import StateDir


def stack_jwt_secret(settings: Settings) -> str | None:
    """The key of the tokens that the stack accepts. None before its first start, unless JWT_SECRET is set."""
    if settings.jwt_secret is not None:
        return settings.jwt_secret.get_secret_value()
    secrets = StateDir(settings.state_dir).read_secrets()
    return secrets.jwt if secrets else None


def stack_migration_url(settings: Settings) -> str | None:
    """Where to migrate as `goldleaves_migrator`. None when Postgres is not running."""
    state = StateDir(settings.state_dir)
    secrets = state.read_secrets()
    if secrets is None or find("postgres", state) is None:
        return None
    password = secrets.goldleaves_migrator
    return postgres_url(MIGRATOR, password, settings.host, settings.postgres_port, DATABASE)


def stack_stripe_webhook_secret(settings: Settings) -> str | None:
    """What signs the webhooks that the stack believes. None before its first start."""
    secrets = StateDir(settings.state_dir).read_secrets()
    return secrets.stripe_webhook if secrets else None
