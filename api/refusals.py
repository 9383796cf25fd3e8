"""Who was refused what. Refusals of the kinds that an attack is made of go to the audit log, added up over a few
seconds: who asks a thousand times a second fills neither memory nor the log.

While Postgres is away they are kept and added up. A token that is not believed names nobody: nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog

from api.database import Database, DatabaseError
from api.metrics import Metrics

log = structlog.get_logger(__name__)

RECORDED: Final = frozenset(
    {
        "42501",
        "CONVERSION_FAILED",
        "INVALID_API_KEY",
        "INVALID_TOKEN",
        "INVITATION_EMAIL_MISMATCH",
        "INVITATION_NOT_FOUND",
        "NOT_A_MEMBER",
        "ORGANIZATION_NOT_FOUND",
        "ROLE_REQUIRED",
        "SCOPE_REQUIRED",
        "WORKSPACE_LIMIT",
    }
)

WRITE_SECONDS: Final = 2.0
LONGEST_PAUSE_SECONDS: Final = 30.0
REPEAT_SECONDS: Final = 60.0  # what was written is written again, with what came since, after so long
BATCH: Final = 500
MOST_NAMED: Final = 1000  # told apart at a time: refusals of somebody whom we know
MOST_UNNAMED: Final = 200  # and of others, of whom there is only an address
UNNAMED_AT_ONCE: Final = 50  # of the latter, so many go to the log at once, and later
UNNAMED_A_SECOND: Final = 0.2
LONGEST_DETAIL: Final = 200
AND_OTHERS: Final = " (and others)"


@dataclass(frozen=True, slots=True)
class Said:
    """What an error answer says: a code that is stable, and the rest of it."""

    code: str
    text: str
    details: str


NAMELESS: Final = Said("", "", "")
_STABLE: Final = re.compile(r"([A-Z][A-Z0-9_]+): (.*)", re.DOTALL)
_CODE_FIRST: Final = re.compile(rb'\{"code":"(\w{1,16})"')  # of PostgREST's errors, which can be as long as a row


def read_answer(body: bytes) -> Said:
    """The code in an error's body, or in the beginning of a long one."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        match = _CODE_FIRST.match(body)
        return replace(NAMELESS, code=match[1].decode()) if match is not None else NAMELESS
    if not isinstance(error, dict):
        return NAMELESS
    code, message, details = (str(error.get(name) or "") for name in ("code", "message", "details"))
    stable = _STABLE.match(message) if code.startswith("PT") else None
    return Said(stable[1], stable[2], details) if stable is not None else Said(code, message, details)


class Refusal(NamedTuple):
    """What makes refusals the same one again."""

    code: str
    organization_id: UUID | None = None  # the caller's own, never one that was only tried
    subject: str | None = None
    key_id: UUID | None = None
    ip: str | None = None
    role: str | None = None  # of the token, once that is believed

    @property
    def is_named(self) -> bool:
        return self.subject is not None or self.key_id is not None


@dataclass(slots=True)
class Tally:
    """How often one was refused since it was last written."""

    user_id: UUID | None
    detail: str
    count: int = 1
    first_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def add(self, other: Tally) -> None:
        if other.detail not in (self.detail, self.detail.removesuffix(AND_OTHERS)):
            self.detail = self.detail.removesuffix(AND_OTHERS) + AND_OTHERS
        self.count += other.count
        self.first_at = min(self.first_at, other.first_at)
        self.last_at = max(self.last_at, other.last_at)


Tallies = OrderedDict[Refusal, Tally]


class Refusals:
    def __init__(self, database: Database, metrics: Metrics, clock: Callable[[], float] = monotonic) -> None:
        self._database = database
        self._metrics = metrics
        self._clock = clock
        self._named: Tallies = OrderedDict()
        self._unnamed: Tallies = OrderedDict()
        self._rest: Tallies = OrderedDict()  # one a code: what came when there was no room to tell it apart
        self._written: OrderedDict[Refusal, float] = OrderedDict()
        self._allowance = float(UNNAMED_AT_ONCE)
        self._allowed_at = clock()
        self._closing = asyncio.Event()

    def note(self, refusal: Refusal, user_id: UUID | None, detail: str) -> None:
        if refusal.code in RECORDED:
            self._add(refusal, Tally(user_id, _printable(detail)))

    def waiting(self) -> int:
        """Rows that the audit log does not have yet."""
        return len(self._named) + len(self._unnamed) + len(self._rest)

    async def run(self) -> None:
        """Write what there is every few seconds. Returns when closing, after everything was tried once more."""
        pause = WRITE_SECONDS
        while not self._closing.is_set():
            try:
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            except TimeoutError:
                pause = WRITE_SECONDS if await self.write_due() else min(2 * pause, LONGEST_PAUSE_SECONDS)
        await self.write_all()
        if self.waiting():
            log.error("refusals_lost", rows=self.waiting())

    async def write_due(self) -> bool:
        """Whether Postgres took what is new, or was last written a while ago."""
        return await self._write(self._due())

    async def write_all(self) -> bool:
        return await self._write([*self._named, *self._unnamed, *self._rest])

    def close(self) -> None:
        self._closing.set()

    def _add(self, refusal: Refusal, tally: Tally) -> None:
        tallies, most = (self._named, MOST_NAMED) if refusal.is_named else (self._unnamed, MOST_UNNAMED)
        if refusal not in tallies and len(tallies) >= most:
            refusal, tallies = Refusal(refusal.code), self._rest
            tally = replace(tally, user_id=None, detail="more callers than are told apart")
        if (known := tallies.get(refusal)) is not None:
            known.add(tally)
        else:
            tallies[refusal] = tally

    def _due(self) -> list[Refusal]:
        """Of those without a name only as many as are allowed."""
        now = self._clock()
        while self._written and next(iter(self._written.values())) <= now - REPEAT_SECONDS:
            self._written.popitem(last=False)
        earned = (now - self._allowed_at) * UNNAMED_A_SECOND
        self._allowance, self._allowed_at = min(UNNAMED_AT_ONCE, self._allowance + earned), now
        unnamed = self._new(self._unnamed)[: max(0, int(self._allowance))]
        return [*self._new(self._named), *unnamed, *self._new(self._rest)]

    def _new(self, tallies: Iterable[Refusal]) -> list[Refusal]:
        return [refusal for refusal in tallies if refusal not in self._written]

    async def _write(self, refusals: list[Refusal]) -> bool:
        """Whether Postgres took them. What it did not is kept, but for single ones that it will never take."""
        batches = deque(refusals[start : start + BATCH] for start in range(0, len(refusals), BATCH))
        while batches:
            batch = [(refusal, tally) for refusal in batches.popleft() if (tally := self._take(refusal)) is not None]
            try:
                await self._database.record_refusals(json.dumps([_row(*each) for each in batch]))
            except DatabaseError as error:
                if error.refused and len(batch) == 1:
                    self._metrics.not_recorded(batch[0][1].count)
                    log.error("refusal_not_recorded", state=error.state, error=error.message)
                    continue
                for refusal, tally in batch:
                    self._add(refusal, tally)
                if not error.refused:
                    log.warning("refusals_wait", state=error.state, error=error.message or str(error))
                    return False
                batches.extendleft([refusal] for refusal, _ in batch)
            else:
                self._remember([refusal for refusal, _ in batch])
        return True

    def _take(self, refusal: Refusal) -> Tally | None:
        for tallies in (self._named, self._unnamed, self._rest):
            if refusal in tallies:
                return tallies.pop(refusal)
        return None

    def _remember(self, written: list[Refusal]) -> None:
        now = self._clock()
        for refusal in written:
            self._written[refusal] = now
            self._written.move_to_end(refusal)
            if not refusal.is_named:
                self._allowance -= 1
        while len(self._written) > MOST_NAMED + MOST_UNNAMED:
            self._written.popitem(last=False)


def _row(refusal: Refusal, tally: Tally) -> dict[str, Any]:
    return {
        "code": refusal.code,
        "organization_id": _text(refusal.organization_id),
        "subject": refusal.subject,
        "role": refusal.role,
        "user_id": _text(tally.user_id),
        "key_id": _text(refusal.key_id),
        "ip": refusal.ip,
        "detail": tally.detail,
        "count": tally.count,
        "first_at": tally.first_at.isoformat(),
        "last_at": tally.last_at.isoformat(),
    }


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


def _printable(text: str) -> str:
    """What clients have put into it may be anything, and Postgres stores no NUL and no half of a surrogate pair."""
    return "".join(character if character.isprintable() else "?" for character in text[:LONGEST_DETAIL])
