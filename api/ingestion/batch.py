"""What Postgres is asked to store."""

from __future__ import annotations

from typing import Literal, NamedTuple
from uuid import UUID

Format = Literal["events", "cloudevents", "ndjson"]


class Batch(NamedTuple):
    """One body, as metering.receive_events() takes it."""

    body: str
    organization_id: UUID | None = None  # of all of it; None: each event names its own
    key_id: UUID | None = None  # the API key that it came with
    format: Format = "events"
