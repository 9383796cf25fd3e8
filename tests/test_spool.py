"""The spool keeps what it was given: over restarts, half-written tails, flipped bits and full disks."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from api.spool import MAGIC, SEGMENT_BYTES, Spool, SpoolError, read_segment

ROOMY = 64 * 1024 * 1024


def records_in(directory: Path) -> list[bytes]:
    return [record for path in sorted(directory.glob("*.spool")) for record in read_segment(path)[0]]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    payloads = [os.urandom(random.randrange(2000)) for _ in range(500)]
    with Spool(tmp_path, ROOMY) as spool:
        assert all(spool.append(payload) for payload in payloads)
        assert records_in(tmp_path) == payloads, "they are in the file before anything is closed"
    assert records_in(tmp_path) == payloads


def test_next_process_adopts_what_was_left(tmp_path: Path) -> None:
    with Spool(tmp_path, ROOMY) as spool:
        spool.append(b"first")
    with Spool(tmp_path, ROOMY) as spool:
        spool.append(b"second")
        segment = spool.oldest_sealed()
        assert segment is not None
        assert read_segment(segment.path) == ([b"first"], 0)
        spool.retire(segment, 0)
        assert records_in(tmp_path) == [b"second"]
    assert records_in(tmp_path) == [b"second"]


def test_a_tail_cut_anywhere_costs_only_the_cut_record(tmp_path: Path) -> None:
    payloads = [b"one", b"", b"three" * 20]
    with Spool(tmp_path, ROOMY) as spool:
        for payload in payloads:
            spool.append(payload)
    (path,) = tmp_path.glob("*.spool")
    whole = path.read_bytes()
    ends = [len(MAGIC)]
    for payload in payloads:
        ends.append(ends[-1] + 8 + len(payload))
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        records, damaged = read_segment(path)
        complete = sum(end <= cut for end in ends[1:])
        assert records == payloads[:complete]
        assert damaged == (cut - ends[complete] if cut >= len(MAGIC) else cut)


def test_a_flipped_bit_is_never_taken_for_a_record(tmp_path: Path) -> None:
    payloads = [b"a record of some length", b"another one"]
    with Spool(tmp_path, ROOMY) as spool:
        for payload in payloads:
            spool.append(payload)
    (path,) = tmp_path.glob("*.spool")
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            broken = bytearray(whole)
            broken[position] ^= 1 << bit
            path.write_bytes(broken)
            records, damaged = read_segment(path)
            assert records == payloads[: len(records)]
            assert damaged > 0


def test_zeros_after_a_power_cut_are_no_records(tmp_path: Path) -> None:
    with Spool(tmp_path, ROOMY) as spool:
        spool.append(b"kept")
    (path,) = tmp_path.glob("*.spool")
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert read_segment(path) == ([b"kept"], 4096)


def test_a_damaged_segment_is_kept_aside(tmp_path: Path) -> None:
    with Spool(tmp_path, ROOMY) as spool:
        spool.append(b"kept")
        spool.seal()
        segment = spool.oldest_sealed()
        assert segment is not None
        spool.retire(segment, 7)
        assert spool.oldest_sealed() is None
        assert spool.state().pending_bytes == 0
        assert segment.path.with_suffix(".damaged").exists()
    with Spool(tmp_path, ROOMY) as spool:
        assert spool.oldest_sealed() is None, "it is not sent again"


def test_only_one_process_owns_the_directory(tmp_path: Path) -> None:
    with Spool(tmp_path, ROOMY), pytest.raises(SpoolError, match="in use by another sidecar"):
        Spool(tmp_path, ROOMY).open()
    with Spool(tmp_path, ROOMY):
        pass


def test_large_segments_are_sealed_by_themselves(tmp_path: Path) -> None:
    with Spool(tmp_path, ROOMY) as spool:
        payload = os.urandom(100_000)
        for _ in range(2 * SEGMENT_BYTES // len(payload)):
            assert spool.append(payload)
        sizes = [path.stat().st_size for path in tmp_path.glob("*.spool")]
        assert len(sizes) == 2
        assert max(sizes) < SEGMENT_BYTES + 2 * len(payload)


def test_full_spool_counts_what_it_could_not_keep_and_recovers(tmp_path: Path) -> None:
    with Spool(tmp_path, max_bytes=10_000) as spool:
        kept = 0
        while spool.append(bytes(1000)):
            kept += 1
        assert kept == 9
        assert not spool.append(bytes(1000))
        assert (spool.state().dropped, spool.state().full) == (2, True)
        assert records_in(tmp_path) == [bytes(1000)] * kept

        spool.seal()
        segment = spool.oldest_sealed()
        assert segment is not None
        spool.retire(segment, 0)
        assert spool.append(b"there is room again")
        assert (spool.state().dropped, spool.state().full) == (2, False)


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
from api.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Spool(Path(sys.argv[1]), 1 << 30) as spool:
    assert spool.append(b"x" * 100)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # the next write fails half way
    assert not spool.append(b"y" * 5000)
    assert not spool.append(b"y" * 5000)
    assert spool.append(b"z" * 100)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert spool.append(b"w" * 5000)
    assert spool.state().dropped == 2, spool.state()
"""


def test_a_disk_that_fills_in_the_middle_of_a_write_leaves_no_half_record(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DISK_FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert records_in(tmp_path) == [b"x" * 100, b"z" * 100, b"w" * 5000]
    assert all(read_segment(path)[1] == 0 for path in tmp_path.glob("*.spool"))


async def test_what_is_appended_is_synced_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    expected: set[int] = set()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    really_sync = os.fsync

    def sync(descriptor: int) -> None:
        really_sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)
        if synced >= expected:
            loop.call_soon_threadsafe(done.set)

    monkeypatch.setattr(os, "fsync", sync)
    with Spool(tmp_path, ROOMY) as spool:
        keeping = asyncio.create_task(spool.keep_synced())
        spool.append(b"to be on the disk soon")
        expected |= inodes(tmp_path)
        async with asyncio.timeout(5):
            await done.wait()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def inodes(directory: Path) -> set[int]:
    """Of the directory and the segment in it."""
    return {directory.stat().st_ino, next(directory.glob("*.spool")).stat().st_ino}
