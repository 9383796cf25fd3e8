"""What can go wrong outside the program, each as the one line that its user reads."""

from __future__ import annotations

from typing import Final

import httpx
import psycopg

from api.audit import AuditError
from api.demo.people import DemoError
from api.exporting.errors import ExportFailed
from api.importing.errors import ImportFailed
from api.release.errors import MigrationError
from api.said_by_postgres import said_by_postgres
from api.settings import SettingsError
from api.stack.endpoints import StackError
from api.stripe.failed import StripeCommandFailed
from api.verification import VerificationError
from api.webhooks.outbox import OutboxError

_OURS: Final = (
    StackError,
    SettingsError,
    AuditError,
    VerificationError,
    MigrationError,
    ImportFailed,
    ExportFailed,
    OutboxError,
    StripeCommandFailed,
)


def explanation(error: Exception) -> str | None:
    """None: it is a mistake of the program."""
    if isinstance(error, _OURS):
        return str(error)
    if isinstance(error, (DemoError, httpx.HTTPError)):
        return f"The demo stopped: {' '.join(str(error).split()) or type(error).__name__}"
    if isinstance(error, psycopg.Error):
        return said_by_postgres(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return None
