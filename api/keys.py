"""API keys. The gateway exchanges one for a short-lived token towards PostgREST, which looks the key up again in each
transaction: what is remembered here saves asking, and lets nobody in.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from time import monotonic
from typing import Final, Generic, TypeVar
from uuid import UUID

import structlog

from api.auth import ApiKey, Principal
from api.database import Database, DatabaseError
from api.errors import Problem, problem
from api.tokens import KEY_CLAIM, Exchange

log = structlog.get_logger(__name__)

REMEMBER_SECONDS: Final = 30.0
TOKEN_LIFETIME: Final = timedelta(seconds=60)  # longer than its key is remembered
MAX_REMEMBERED: Final = 4096  # good ones, and as many bad ones
LOOKUPS_AT_ONCE: Final = 2  # of all that are not remembered: who guesses leaves connections to the others
WAIT_SECONDS: Final = 5.0
NOTE_SECONDS: Final = 60.0

_LOOKS_LIKE_ONE: Final = re.compile(rb"bearer +gl_", re.IGNORECASE)
_BEARER: Final = re.compile(rb"(?i:bearer) +(gl_([0-9a-f]{12})_[0-9a-f]{64}) *")

Value = TypeVar("Value")


def looks_like_a_key(authorization: bytes) -> bool:
    return _LOOKS_LIKE_ONE.match(authorization) is not None


class ApiKeys:
    """Finds out whose an API key is. Of the key itself only a hash leaves this class."""

    def __init__(self, database: Database, exchange: Exchange) -> None:
        self._database = database
        self._exchange = exchange
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._good = _Remembered[Principal]()
        self._bad = _Remembered[None]()
        self._used: dict[UUID, datetime] = {}
        self._closing = asyncio.Event()

    async def principal(self, authorization: bytes) -> Principal:
        """The principal of an Authorization header. Raises INVALID_API_KEY (401), and 503 when Postgres is away."""
        match = _BEARER.fullmatch(authorization)
        if match is None:
            raise _invalid("the API key is malformed")
        digest = sha256(match[1]).digest()
        principal = self._good.get(digest)
        if principal is None and digest not in self._bad:
            principal = await self._find(match[2].decode("ascii"), digest)
        if principal is None or principal.key is None:
            raise _invalid("the API key is unknown, revoked or expired")
        self._used[principal.key.id] = datetime.now(UTC)
        return principal

    def forget(self, authorization: bytes) -> None:
        """Ask about this key again when it comes the next time."""
        if (match := _BEARER.fullmatch(authorization)) is not None:
            self._good.forget(sha256(match[1]).digest())

    async def _find(self, prefix: str, digest: bytes) -> Principal | None:
        async with self._turn():
            if digest in self._bad:
                return None
            if (found_meanwhile := self._good.get(digest)) is not None:
                return found_meanwhile
            try:
                key = await self._database.find_api_key(prefix, digest)
            except DatabaseError as error:
                raise error.problem() or error from None
            if key is None:
                self._bad.remember(digest, None)
                return None
            principal = self._principal(key)
            self._good.remember(digest, principal)
            return principal

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._lookups.acquire()
        except TimeoutError:
            text = "more API keys are being looked up than the database answers for"
            raise problem("DATABASE_BUSY", text, hint="Try again in a moment.") from None
        try:
            yield
        finally:
            self._lookups.release()

    def _principal(self, key: ApiKey) -> Principal:
        if key.is_providers:
            return Principal("service", key=key)
        claims = {"role": "member", KEY_CLAIM: str(key.id)}
        return Principal("member", token=self._exchange.sign(claims, datetime.now(UTC) + TOKEN_LIFETIME), key=key)

    def close(self) -> None:
        """No more requests will come."""
        self._closing.set()

    async def run(self) -> None:
        """Write down once in a while, and at the end, when keys were last used."""
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NOTE_SECONDS):
                    await self._closing.wait()
            await self.note_uses()

    async def note_uses(self) -> None:
        """In one call, for all keys that were used since the last one."""
        uses, self._used = self._used, {}
        if not uses:
            return
        try:
            await self._database.note_key_use(uses)
        except DatabaseError as error:
            log.warning("key_uses_not_noted", keys=len(uses), state=error.state, error=error.message or str(error))
            self._used = uses | self._used


class _Remembered(Generic[Value]):
    """By the hash of a key, for a while; what was not asked for longest goes first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[Value, float]] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        entry = self._entries.get(digest)
        return entry is not None and monotonic() < entry[1]

    def get(self, digest: bytes) -> Value | None:
        if digest not in self:
            return None
        self._entries.move_to_end(digest)
        return self._entries[digest][0]

    def remember(self, digest: bytes, value: Value) -> None:
        self._entries.pop(digest, None)
        self._entries[digest] = value, monotonic() + REMEMBER_SECONDS
        if len(self._entries) > MAX_REMEMBERED:
            self._entries.popitem(last=False)

    def forget(self, digest: bytes) -> None:
        self._entries.pop(digest, None)


def _invalid(text: str) -> Problem:
    return problem("INVALID_API_KEY", text, hint="Send a key that is good as 'Authorization: Bearer gl_…'.")
