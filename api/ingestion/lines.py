"""NDJSON of any length: it goes to Postgres in batches while the rest still comes, so that none of it is ever whole in
memory. What was stored before an error stays: sending all of it again counts nothing twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from api.database import DatabaseError
from api.errors import Problem, problem
from api.ingestion.answers import not_stored
from api.ingestion.limits import Share

BATCH_LINES: Final = 1000
BATCH_BYTES: Final = 1024 * 1024
MOST_LISTED: Final = 1000  # conflicts, and as many rejected events

Store = Callable[[str], Awaitable[str]]


@dataclass(slots=True)
class Lines:
    """Lines that are not blank, and the number of each, from 1."""

    texts: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    size: int = 0

    def add(self, text: bytes, number: int) -> None:
        self.texts.append(text)
        self.numbers.append(number)
        self.size += len(text) + 1

    def is_full(self) -> bool:
        return len(self.texts) >= BATCH_LINES or self.size >= BATCH_BYTES

    def body(self) -> str:
        try:
            text = b"\n".join(self.texts).decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        return text if "\0" not in text else "\n".join(_line(each) for each in self.texts)


def _line(text: bytes) -> str:
    """One that Postgres cannot hold becomes a JSON string, which is no event: it is rejected alone, and kept."""
    try:
        line = text.decode("utf-8")
    except UnicodeDecodeError:
        line = "\0"
    return line if "\0" not in line else json.dumps(text.decode("utf-8", "replace").replace("\0", "\ufffd"))


class Total:
    """The outcomes of all batches so far, as one."""

    def __init__(self) -> None:
        self.accepted = 0
        self.duplicates = 0
        self.conflicts = 0
        self.rejected = 0
        self.last_line = 0
        self._listed: dict[str, list[dict[str, Any]]] = {"conflicts": [], "rejected": []}

    def add(self, outcome: dict[str, Any], numbers: list[int]) -> None:
        self.accepted += outcome["accepted"]
        self.duplicates += outcome["duplicates"]
        self.conflicts += len(outcome["conflicts"])
        self.rejected += len(outcome["rejected"])
        self.last_line = numbers[-1]
        for kind, listed in self._listed.items():
            for event in outcome[kind][: MOST_LISTED - len(listed)]:
                line = numbers[event["index"]]
                told = f"event {event['index']}: "  # of the batch, which its sender does not know
                message = event["message"]
                if message.startswith(told):
                    message = f"line {line}: {message.removeprefix(told)}"
                listed.append({**event, "message": message, "index": line - 1, "line": line})

    def as_json(self) -> str:
        totals = {"conflicts_total": self.conflicts, "rejected_total": self.rejected}
        return json.dumps({"accepted": self.accepted, "duplicates": self.duplicates, **self._listed, **totals})

    def before(self, error: Problem) -> Problem:
        """The error that ended it, with what was stored before."""
        if not self.last_line:
            return error
        return Problem(
            error.status,
            error.code,
            error.message,
            f"Up to line {self.last_line}, {self.accepted} events were accepted and {self.duplicates} were duplicates; "
            f"{self.conflicts} conflicts and {self.rejected} rejected events are kept.",
            "Send all of it again: what is stored already counts once.",
        )


async def store_lines(pieces: AsyncIterator[bytes], most_bytes: int, share: Share, store: Store) -> str:
    """The outcome of all lines as JSON text. `store` is given some of them at a time, and returns their outcome.

    Raises BODY_TOO_LARGE (413) for a line that is longer than `most_bytes`, and what `pieces` and `store` raise;
    details then say how far it came.
    """
    total = Total()
    storing: asyncio.Task[None] | None = None

    async def store_some(lines: Lines) -> None:
        try:
            total.add(json.loads(await store(lines.body())), lines.numbers)
        except DatabaseError as error:
            raise not_stored(error) from None
        finally:
            share.give_back(lines.size)

    try:
        async for lines in _batches(pieces, most_bytes, share):
            if storing is not None:
                await storing
            storing = asyncio.create_task(store_some(lines))
        if storing is not None:
            await storing
    except Problem as error:
        if storing is not None:
            with suppress(Problem):
                await storing  # it may get there all the same, and then it counts
        raise total.before(error) from None
    return total.as_json()


async def _batches(pieces: AsyncIterator[bytes], most_bytes: int, share: Share) -> AsyncIterator[Lines]:
    lines, number, rest = Lines(), 0, b""
    async for piece in pieces:
        joined = rest + piece
        if joined.isspace():  # a bomb is gzip of these, and a line at a time would take a second for 40 kB of it
            number += joined.count(b"\n")
            whole, rest = [], joined.rpartition(b"\n")[2]
        else:
            *whole, rest = joined.split(b"\n")
        for text in whole:
            number += 1
            if len(text) > most_bytes:
                raise _too_long(number, most_bytes)
            if text and not text.isspace():
                share.take(len(text) + 1)
                lines.add(text, number)
                if lines.is_full():
                    yield lines
                    lines = Lines()
        if len(rest) > most_bytes:
            raise _too_long(number + 1, most_bytes)
    if rest and not rest.isspace():
        share.take(len(rest) + 1)
        lines.add(rest, number + 1)
    if lines.texts:
        yield lines


def _too_long(number: int, most_bytes: int) -> Problem:
    return problem("BODY_TOO_LARGE", f"line {number} is longer than {most_bytes} bytes", hint="Send smaller events.")
