"""Ships the spool to Postgres, in batches, for as long as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import orjson
import structlog

from api.database import Database, DatabaseError
from api.ingestion.answers import Count, count_outcome
from api.ingestion.batch import Batch
from api.spool import Segment, Spool, read_segment

log = structlog.get_logger(__name__)

SOURCE: Final = "gateway"
BATCH_RECORDS: Final = 1000
GATHER_SECONDS: Final = 0.1  # how long a first record waits for company
# And while there are many: a batch costs Postgres milliseconds, whatever is in it.
GATHER_MANY_SECONDS: Final = 0.4
MANY_RECORDS: Final = 50
FIRST_BACKOFF_SECONDS: Final = 0.1
LONGEST_BACKOFF_SECONDS: Final = 5.0

Answer = TypeVar("Answer")


class Sender:
    def __init__(self, spool: Spool, database: Database, count: Count) -> None:
        self._spool = spool
        self._database = database
        self._count = count
        self._closing = asyncio.Event()
        self._last_segment = 0  # how many records it had

    async def run(self) -> None:
        """Send what there is, oldest first. Returns when closing and nothing is left."""
        while True:
            segment = self._spool.oldest_sealed()
            if segment is not None:
                try:
                    await self._ship(segment)
                except Exception:  # the disk, or a mistake of ours: metering waits, but does not end
                    log.exception("spool_stuck", segment=segment.path.name)
                    await asyncio.sleep(LONGEST_BACKOFF_SECONDS)
                continue
            if not self._closing.is_set():
                await self._until_closing(self._spool.wait_for_records())
                is_busy = self._last_segment >= MANY_RECORDS
                await self._until_closing(asyncio.sleep(GATHER_MANY_SECONDS if is_busy else GATHER_SECONDS))
            self._spool.seal()
            if self._closing.is_set() and self._spool.oldest_sealed() is None:
                return

    def close(self) -> None:
        """Stop waiting for more; `run` returns once what is there has been sent."""
        self._closing.set()

    async def _ship(self, segment: Segment) -> None:
        records, damaged = await asyncio.to_thread(read_segment, segment.path)
        while segment.delivered < len(records):
            batch = records[segment.delivered : segment.delivered + BATCH_RECORDS]
            await self._deliver(batch)
            segment.delivered += len(batch)
        self._spool.retire(segment, damaged)
        self._last_segment = len(records)

    async def _deliver(self, batch: list[bytes]) -> None:
        """Until Postgres has answered for each event. A refused batch is halved until the bad event stands alone.

        A record is one event or several, with commas between.
        """
        events = f"[{b','.join(batch).decode('utf-8', 'replace')}]"
        try:
            outcome = await self._insist(lambda: self._database.ingest(Batch(events), SOURCE, "adjust"))
        except DatabaseError as refusal:
            if len(batch) == 1:
                batch = _events_of(batch[0])
            if len(batch) == 1:
                await self._reject(batch[0], refusal)
                return
            middle = len(batch) // 2
            await self._deliver(batch[:middle])
            await self._deliver(batch[middle:])
        else:
            self._take_note(outcome)

    def _take_note(self, outcome: str) -> None:
        """Postgres keeps each event that it turned down, with the reason. That there are some is to be noticed here."""
        answer = json.loads(outcome)
        count_outcome(answer, self._count)
        codes = Counter(str(event["code"]) for event in (*answer["rejected"], *answer["conflicts"]))
        if codes:
            self._spool.count_rejected(codes.total())
            log.warning("events_rejected", count=codes.total(), codes=dict(codes))

    async def _reject(self, event: bytes, refusal: DatabaseError) -> None:
        self._spool.count_rejected(1)
        log.error("event_refused", state=refusal.state, error=refusal.message)
        code, message = _stable_code(refusal), refusal.message or str(refusal)
        text = event.decode("utf-8", "replace")
        try:
            await self._insist(lambda: self._database.record_rejection(SOURCE, text, code, message))
        except DatabaseError:  # not even JSON that Postgres can hold: keep it as the text that it is
            quoted = json.dumps(text)
            await self._insist(lambda: self._database.record_rejection(SOURCE, quoted, code, message))

    async def _insist(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Repeat a call until Postgres answers. Raises DatabaseError only for data that it will never take."""
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                return await call()
            except DatabaseError as error:
                if error.refused:
                    raise
                reason = error.message or str(error)
                log.warning("spool_waits", state=error.state, error=reason, seconds=round(backoff, 2))
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def _until_closing(self, awaitable: Awaitable[object]) -> None:
        """Wait, but not longer than until closing."""
        waiting = asyncio.ensure_future(awaitable)
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((waiting, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (waiting, closing):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


def _events_of(record: bytes) -> list[bytes]:
    try:
        return [orjson.dumps(event) for event in orjson.loads(b"[%b]" % record)]
    except orjson.JSONDecodeError:
        return [record]


def _stable_code(refusal: DatabaseError) -> str:
    """The code that our SQL puts in front of its message. What Postgres itself refuses is just no valid event."""
    code, colon, _ = refusal.message.partition(":")
    return code if colon and refusal.state is not None and refusal.state.startswith("PT") else "INVALID_EVENT"
