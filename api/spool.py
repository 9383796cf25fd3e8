"""The spool: usage records on local disk between the response and Postgres.

An append is one write(2): it reaches the page cache, so that a killed process loses nothing, and fsync follows within
50 ms, so that a power cut loses at most that. Records live in numbered segments. The newest one is appended to; it is
sealed when it is large, or when the sender wants it; a sealed one is deleted once Postgres has answered for all of it.
After a crash whole segments are sent again, which the idempotency key of each record makes harmless.

A segment: eight bytes of magic, then per record a length and a CRC-32 (four bytes each, big endian) and the payload.
The checksum covers the length. Reading stops at the first record that does not check: what a crash left half written
was acknowledged to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Final, Self

import structlog

log = structlog.get_logger(__name__)

MAGIC: Final = b"GLSPOOL1"
SUFFIX: Final = ".spool"
SEGMENT_BYTES: Final = 4 * 1024 * 1024
MAX_RECORD_BYTES: Final = 1024 * 1024
SYNC_DELAY_SECONDS: Final = 0.02
COMPLAIN_EVERY_SECONDS: Final = 10.0
STALLED_AFTER_SECONDS: Final = 60.0  # records are usually in Postgres within a fraction of a second
FULL_FOR_SECONDS: Final = 30.0  # how long a record that could not be kept shows in /health, unless a later one is kept
_HEADER: Final = struct.Struct(">II")
_LENGTH: Final = struct.Struct(">I")
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND


class SpoolError(Exception):
    """The spool directory cannot be used. The text is one line that says why."""


@dataclass(slots=True)
class Segment:
    path: Path
    size: int
    created: float  # seconds since the epoch
    delivered: int = 0  # records that Postgres has answered for


@dataclass(frozen=True, slots=True)
class SpoolState:
    pending_bytes: int
    oldest_seconds: float
    dropped: int
    rejected: int  # what Postgres has turned down since the start: look for events_rejected in the log
    full: bool
    stalled: bool  # what is oldest should have been delivered long ago: look for spool_waits in the log


class Spool:
    """One process owns the directory. Appending and sealing happen on the event loop's thread only."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._sealed: deque[Segment] = deque()
        self._active: Segment | None = None
        self._active_fd = -1
        self._lock_fd = -1
        self._directory_fd = -1
        self._next_number = 1
        self._bytes = 0
        self._dropped = 0
        self._rejected = 0
        self._failed_at: float | None = None
        self._complained = -COMPLAIN_EVERY_SECONDS
        self._unsynced: deque[int] = deque()  # descriptors of sealed segments; the thread that syncs takes them out
        self._reserve: deque[int] = deque()  # one to give up for the next segment when there are no descriptors left
        self._names_unsynced = False
        self._appended = asyncio.Event()
        self._dirty = asyncio.Event()

    def open(self) -> None:
        """Take the directory and adopt what an earlier process left. Raises SpoolError."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            self._reserve.append(os.dup(self._directory_fd))
        except BlockingIOError:
            os.close(self._lock_fd)
            raise SpoolError(f"SPOOL_DIR {self._directory} is in use by another sidecar.") from None
        except OSError as error:
            raise SpoolError(f"SPOOL_DIR {self._directory} cannot be used: {error.strerror}.") from None
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            status = path.stat()
            self._sealed.append(Segment(path, status.st_size, status.st_mtime))
            self._bytes += status.st_size
            self._next_number = int(path.stem) + 1

    def close(self) -> None:
        """Sync what is here and let go of the directory. What is not sent yet is sent after the next start."""
        self.seal()
        self._sync(None)
        for descriptor in (*self._reserve, self._directory_fd, self._lock_fd):
            os.close(descriptor)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, payload: bytes) -> bool:
        """Put a record on disk. False when it could not be kept; that is counted, and never the request's problem."""
        length = _LENGTH.pack(len(payload))
        record = b"".join((length, _LENGTH.pack(zlib.crc32(payload, zlib.crc32(length))), payload))
        if self._bytes + len(record) + len(MAGIC) > self._max_bytes or len(payload) > MAX_RECORD_BYTES:
            return self._drop("the spool is full")
        try:
            if self._active is None:
                self._begin_segment()
            self._write(record)
        except OSError as error:
            return self._drop(str(error))
        self._failed_at = None
        self._appended.set()
        self._dirty.set()
        if self._active is not None and self._active.size >= SEGMENT_BYTES:
            self.seal()
        return True

    def seal(self) -> None:
        """Close the newest segment, so that it can be sent."""
        if self._active is None:
            return
        self._unsynced.append(self._active_fd)
        self._sealed.append(self._active)
        self._active, self._active_fd = None, -1
        self._appended.clear()
        self._dirty.set()

    def oldest_sealed(self) -> Segment | None:
        return self._sealed[0] if self._sealed else None

    async def wait_for_records(self) -> None:
        """Until the newest segment has something."""
        await self._appended.wait()

    def retire(self, segment: Segment, damaged_bytes: int) -> None:
        """Postgres has answered for all of it. A segment with bytes that could not be read is kept aside."""
        self._sealed.remove(segment)
        self._bytes -= segment.size
        try:
            if damaged_bytes:
                log.error("spool_damaged", segment=segment.path.name, bytes=damaged_bytes)
                segment.path.rename(segment.path.with_suffix(".damaged"))
            else:
                segment.path.unlink()
        except OSError as error:
            log.error("spool_cleanup_failed", segment=segment.path.name, error=str(error))

    def count_rejected(self, records: int) -> None:
        """Records that reached Postgres and count for nothing there."""
        self._rejected += records

    def state(self) -> SpoolState:
        oldest = self._sealed[0] if self._sealed else self._active
        age = max(0.0, time() - oldest.created) if oldest is not None else 0.0
        full = self._failed_at is not None and monotonic() - self._failed_at < FULL_FOR_SECONDS
        return SpoolState(self._bytes, round(age, 3), self._dropped, self._rejected, full, age > STALLED_AFTER_SECONDS)

    async def keep_synced(self) -> None:
        """Bring what was appended to the disk itself, soon after. Runs until cancelled."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SYNC_DELAY_SECONDS)
            self._dirty.clear()
            await asyncio.to_thread(self._sync, self._active_fd if self._active is not None else None)

    def _sync(self, active: int | None) -> None:
        """Sync the newest segment, those sealed since the last time, and their names. Runs in a thread.

        It opens nothing, since the process may have no descriptor left, and closes only what is sealed.
        """
        if active is not None:
            self._sync_one(active)
        while self._unsynced:
            descriptor = self._unsynced.popleft()
            try:
                self._sync_one(descriptor)
            finally:
                self._let_go(descriptor)
        if self._names_unsynced:
            self._names_unsynced = False
            self._sync_one(self._directory_fd)

    def _sync_one(self, descriptor: int) -> None:
        try:
            os.fsync(descriptor)
        except OSError as error:
            log.error("spool_sync_failed", error=str(error))

    def _begin_segment(self) -> None:
        """Make the next file. It becomes the newest segment only once it has begun as one should."""
        path = self._directory / f"{self._next_number:020d}{SUFFIX}"
        descriptor = self._open_segment(path)
        self._next_number += 1
        try:
            if os.write(descriptor, MAGIC) != len(MAGIC):
                raise OSError("the disk is full")
        except OSError:
            self._let_go(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self._active, self._active_fd = Segment(path, len(MAGIC), time()), descriptor
        self._bytes += len(MAGIC)
        self._names_unsynced = True

    def _open_segment(self, path: Path) -> int:
        """Without descriptors, at the price of the one kept in reserve: connections may wait, records may not."""
        try:
            return os.open(path, _CREATE, 0o600)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._reserve:
                raise
        os.close(self._reserve.popleft())
        return os.open(path, _CREATE, 0o600)

    def _let_go(self, descriptor: int) -> None:
        """Close the file. Its descriptor becomes the reserve when that was used: nobody else is to get hold of it."""
        if self._reserve:
            os.close(descriptor)
        else:
            os.dup2(self._directory_fd, descriptor, inheritable=False)
            self._reserve.append(descriptor)

    def _write(self, data: bytes) -> None:
        """All of it or nothing: what follows half a record would be unreadable."""
        if self._active is None:
            raise OSError("there is no segment")
        try:
            written = os.write(self._active_fd, data)
            if written != len(data):
                raise OSError("the disk is full")
        except OSError:
            self._abandon_tail()
            raise
        self._active.size += written
        self._bytes += written

    def _abandon_tail(self) -> None:
        if self._active is None:
            return
        try:
            os.ftruncate(self._active_fd, self._active.size)
        except OSError:
            self.seal()

    def _drop(self, reason: str) -> bool:
        self._dropped += 1
        self._failed_at = now = monotonic()
        if now - self._complained >= COMPLAIN_EVERY_SECONDS:
            self._complained = now
            log.error("usage_dropped", reason=reason, dropped=self._dropped)
        return False


def records_left(directory: Path) -> int:
    """How many records wait in a spool that no sidecar has open."""
    return sum(len(read_segment(path)[0]) for path in directory.glob(f"*{SUFFIX}"))


def read_segment(path: Path) -> tuple[list[bytes], int]:
    """The records of a segment, and how many bytes at its end could not be read as records."""
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        return [], len(data)
    records: list[bytes] = []
    position = len(MAGIC)
    while position + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, position)
        start = position + _HEADER.size
        payload = data[start : start + length]
        if len(payload) != length or zlib.crc32(payload, zlib.crc32(data[position : position + 4])) != checksum:
            break
        records.append(payload)
        position = start + length
    return records, len(data) - position
