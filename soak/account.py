"""The account that the load keeps: what it was told was accepted, and which of its requests were answered."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import time
from typing import Final
from uuid import uuid4

REQUEST_PREFIX: Final = "soak-"


@dataclass(frozen=True, slots=True)
class Usage:
    """One usage event as it was sent."""

    id: str
    organization: str
    name: str
    quantity: int
    user: str


@dataclass(slots=True)
class Asked:
    """One request. `status` 0: it has no whole answer, and may or may not have been served."""

    billable: bool
    began: float
    ended: float = 0.0
    status: int = 0

    @property
    def is_billed(self) -> bool:
        return self.billable and self.status not in (0, 401, 403, 429) and self.status < 500


@dataclass
class Account:
    """Written by all clients. What it says of events is what their answers say, never what was sent."""

    requests: dict[str, Asked] = field(default_factory=dict)
    documents: dict[str, bool] = field(default_factory=dict)  # by title: whether it was answered that it is there
    sent_again: int = 0
    done: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    _live: dict[str, dict[str, Usage]] = field(default_factory=lambda: defaultdict(dict))  # of an organization, by id
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, *, billable: bool) -> str:
        """The id of a request that is about to be sent."""
        request_id = f"{REQUEST_PREFIX}{uuid4()}"
        with self._lock:
            self.requests[request_id] = Asked(billable, time())
        return request_id

    def answered(self, request_id: str, status: int) -> None:
        with self._lock:
            asked = self.requests[request_id]
            asked.status, asked.ended = status, time()

    def not_answered(self, request_id: str) -> None:
        with self._lock:
            self.requests[request_id].ended = time()
            self.sent_again += 1

    def accepted(self, events: Iterable[Usage]) -> None:
        with self._lock:
            for event in events:
                self._live[event.organization][event.id] = event

    def voided(self, event: Usage) -> None:
        with self._lock:
            del self._live[event.organization][event.id]

    def document(self, title: str, *, is_there: bool) -> None:
        with self._lock:
            self.documents[title] = is_there

    def did(self, what: str) -> None:
        with self._lock:
            self.done[what] += 1

    def surprise(self, text: str) -> None:
        """Something that no fault explains. One is enough for the soak to fail."""
        with self._lock:
            self.surprises.append(text)

    def live(self, organization: str) -> list[Usage]:
        """What was accepted and not taken back."""
        with self._lock:
            return list(self._live[organization].values())
