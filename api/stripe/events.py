"""The inbox seen from the command line: what came, what is dead, and having it applied again.

What replaying is says sql/stripe/replay_events.sql. `url` is that of goldleaves_migrator, or of a superuser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.rows import class_row

from api.stripe.failed import StripeCommandFailed
from api.stripe.kernel import as_kernel

STATUSES: Final = ("received", "applied", "stale", "ignored", "unlinked", "failed", "dead")

_EVENTS: Final = """
  select e.id, e.type, e.created_at, e.received_at, e.status, e.attempts,
    case when e.status in ('received', 'failed') then e.next_attempt_at end as next_attempt_at, e.message,
    e.organization_id, coalesce(o.slug, e.customer_id, '') as whose
  from stripe.webhook_events e
  left join tenancy.organizations o on o.id = e.organization_id
  where %(status)s::text is null or e.status = %(status)s
  order by e.received_at desc, e.id
  limit %(most)s
"""


@dataclass(frozen=True)
class Event:
    id: str
    type: str
    created_at: datetime
    received_at: datetime
    status: str
    attempts: int
    next_attempt_at: datetime | None
    message: str | None
    organization_id: UUID | None
    whose: str  # the slug of the organization, else the customer at Stripe


def events(url: str, status: str | None, most: int) -> list[Event]:
    """Those that came last first. Raises StripeCommandFailed for a status that there is not."""
    if status is not None and status not in STATUSES:
        raise StripeCommandFailed(f"{status!r} is no status of events. Take one of {', '.join(STATUSES)}.")
    with as_kernel(url) as conn, conn.cursor(row_factory=class_row(Event)) as cursor:
        return cursor.execute(_EVENTS, {"status": status, "most": most}).fetchall()


def replay(url: str, ids: Sequence[str]) -> int:
    """All of them, or none. Raises psycopg.Error for one that there is not."""
    with as_kernel(url) as conn:
        for one in sorted(set(ids)):
            conn.execute("select stripe.replay_event(%s)", [one])
    return len(set(ids))


def replay_dead(url: str, since: datetime | None) -> int:
    with as_kernel(url) as conn:
        row = conn.execute("select stripe.replay_dead_events(%s)", [since]).fetchone()
    assert row is not None  # noqa: S101 - the function returns one row
    return int(row[0])
