"""Reports of usage from the command line: making and sending them at once, and having made anew what did not arrive.

`url` is that of goldleaves_migrator, or of a superuser.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from api.database import Database, DatabaseError, WaitingReports
from api.stripe.client import Stripe
from api.stripe.failed import StripeCommandFailed
from api.stripe.kernel import as_kernel
from api.stripe.reporting import Reporting, Tally

CONNECTIONS: Final = 4
SECONDS: Final = 600.0
_ROLE: Final = "goldleaves_kernel"  # whose the functions are


@dataclass(frozen=True, slots=True)
class Reported:
    tally: Tally
    waiting: WaitingReports


def resend(url: str, organization_id: UUID | None, statuses: Sequence[str]) -> int:
    """Have those that were rejected, or that nobody knows of, made anew. Returns how many there were."""
    with as_kernel(url) as conn:
        row = conn.execute("select stripe.resend_reports(%s, %s)", [organization_id, list(statuses)]).fetchone()
    assert row is not None  # noqa: S101 - the function returns one row
    return int(row[0])


def resend_items(url: str, organization_id: UUID | None) -> int:
    """Have amounts that Stripe refused sent again by the sidecar. Returns how many there were."""
    with as_kernel(url) as conn:
        row = conn.execute("select stripe.resend_invoice_items(%s)", [organization_id]).fetchone()
    assert row is not None  # noqa: S101 - the function returns one row
    return int(row[0])


async def report(secret_key: str, base: str | None, url: str, organization_id: UUID | None) -> Reported:
    """Make and send what there is. Raises StripeCommandFailed where Stripe or the database does not answer."""
    options = conninfo_to_dict(url).get("options") or ""
    database = Database(make_conninfo(url, options=f"{options} -c role={_ROLE}".strip()), CONNECTIONS)
    stripe = Stripe(secret_key, base)
    try:
        tally = await Reporting(database, stripe).report_now(organization_id, SECONDS)
        waiting = await database.report_backlog(organization_id)
    except DatabaseError as error:
        raise StripeCommandFailed(f"The database: {' '.join(str(error).split())}") from None
    finally:
        with suppress(Exception):
            await stripe.close()
        await database.close()
    if tally.away:
        raise StripeCommandFailed("Stripe does not answer. What waits is sent by the sidecar, or with the next call.")
    return Reported(tally, waiting)
