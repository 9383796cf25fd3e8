"""Reading bodies: whole and bounded, or piece by piece; gzip is taken off without ever holding more than a piece."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect, Request

from api.errors import Problem, problem
from api.ingestion.content import Content, invalid
from api.ingestion.limits import Share

PIECE_BYTES: Final = 128 * 1024
MOST_TIMES: Final = 200  # what a compressed body may grow by: JSON of events grows by 5 to 50
FREE_BYTES: Final = 1024 * 1024  # and what it may always come to
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


async def read_text(request: Request, content: Content, max_bytes: int, share: Share) -> str:
    """Raises BODY_TOO_LARGE (413), and INVALID_BODY (400)."""
    chunks, size = [], 0
    async for piece in pieces(request, content):
        size += len(piece)
        if size > max_bytes:
            raise too_large(max_bytes)
        share.take(len(piece))
        chunks.append(piece)
    try:
        return b"".join(chunks).decode("utf-8")
    except UnicodeDecodeError:
        raise problem("INVALID_BODY", "the body is not UTF-8", hint="Encode it as UTF-8.") from None


def refuse_declared(request: Request, max_bytes: int) -> None:
    """Raises BODY_TOO_LARGE (413) before anything is read."""
    for name, value in request.scope["headers"]:
        if name == b"content-length" and int(value) > max_bytes:
            raise too_large(max_bytes)


def too_large(max_bytes: int) -> Problem:
    return problem("BODY_TOO_LARGE", f"the body is larger than {max_bytes} bytes", hint="Send smaller batches.")


def pieces(request: Request, content: Content) -> AsyncIterator[bytes]:
    """The body, uncompressed. Raises INVALID_BODY (400) for gzip that is damaged or cut off."""
    raw = _chunks(request)
    return _unzipped(raw) if content.gzip else raw


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise problem("INVALID_BODY", "the body ended early", hint="Send all of it.") from None  # nobody reads this


async def _unzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """RFC 1952: one member after the other."""
    member = zlib.decompressobj(_GZIP_WINDOW)
    taken = given = 0
    async for chunk in chunks:
        taken += len(chunk)
        left, more = chunk, True
        while left or more:
            if member.eof:
                member = zlib.decompressobj(_GZIP_WINDOW)
            try:
                piece = member.decompress(left, PIECE_BYTES)
            except zlib.error as error:
                raise invalid(f"the body is not gzip: {error}") from None
            given += len(piece)
            if given > FREE_BYTES + MOST_TIMES * taken:
                raise problem(
                    "BODY_TOO_LARGE",
                    f"the body is more than {MOST_TIMES} times as large as it was compressed",
                    hint="Send it uncompressed.",
                )
            left = member.unused_data if member.eof else member.unconsumed_tail
            more = len(piece) == PIECE_BYTES and not member.eof  # there may be more in it than it was given
            if piece:
                yield piece
                await asyncio.sleep(0)  # others may go between two pieces
    if not member.eof:
        raise invalid("the body is gzip that was cut off", "Send all of it. Nothing of it was stored.")
