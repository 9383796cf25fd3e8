"""The three parts of the stack as they are started, and the addresses and secrets that go into them."""

from __future__ import annotations

from pydantic import SecretStr

from api.settings import Settings
from api.stack.endpoints import DATABASE, postgres_url
from api.stack.postgres import postgres_part
from api.stack.processes import Part
from api.stack.services import postgrest_part, sidecar_part
from api.stack.state import Secrets, StateDir

# In the order in which they start. They stop in the opposite one.
PARTS = ("postgres", "postgrest", "sidecar")


def stack_parts(settings: Settings, state: StateDir, secrets: Secrets) -> tuple[Part, ...]:
    secret = jwt_secret(settings, secrets)
    settings = settings.model_copy(update={"stripe_webhook_secret": stripe_webhook_secret(settings, secrets)})
    return (
        postgres_part(settings, state),
        postgrest_part(settings, database_url(settings, "authenticator", secrets.authenticator), secret),
        sidecar_part(settings, database_url(settings, "sidecar", secrets.sidecar), secret, state.spool.resolve()),
    )


def jwt_secret(settings: Settings, secrets: Secrets) -> str:
    """The key of the tokens this stack accepts: JWT_SECRET, else the generated one."""
    return settings.jwt_secret.get_secret_value() if settings.jwt_secret is not None else secrets.jwt


def stripe_webhook_secret(settings: Settings, secrets: Secrets) -> SecretStr:
    """What Stripe's webhooks are signed with here: STRIPE_WEBHOOK_SECRET, else a secret that follows from the generated
    ones, so that `goldleaves stripe fixtures trigger` can sign some.
    """
    return settings.stripe_webhook_secret or SecretStr(secrets.stripe_webhook)


def database_url(settings: Settings, role: str, password: str) -> str:
    return postgres_url(role, password, settings.host, settings.postgres_port, DATABASE)
