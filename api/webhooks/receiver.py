"""The provider's application, as it is seen from here: a URL that messages are posted to, one attempt at a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import httpx

from api.webhooks.signing import Signer

TIMEOUT_SECONDS: Final = 15.0
LONGEST_PAUSE_SECONDS: Final = 3600.0
MOST_BYTES: Final = 2048  # of an answer: what it says is for people who look for a mistake
MOST_CHARACTERS: Final = 200
# Of these it is said how long to leave them alone.
_BUSY: Final = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` None: there was none. `pause`: for how many seconds the receiver wants nothing at all."""

    status: int | None
    error: str = ""
    pause: float = 0.0

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Receiver:
    """Redirects are not followed, and what is compressed is not unpacked."""

    def __init__(self, url: str, signer: Signer, connections: int) -> None:
        self._url = url
        self._signer = signer
        self._headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "goldleaves",
        }
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def post(self, message_id: str, body: str) -> Answer:
        """Send it once. What the receiver has said counts, also when the connection breaks after its first line."""
        status, pause, text, failure = None, 0.0, "", ""
        headers = self._headers | self._signer.headers(message_id, body)
        try:
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                self._client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
                pause = _pause(answer)
                text = await _beginning(answer)
        except TimeoutError:
            failure = f"no answer within {TIMEOUT_SECONDS:.0f} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            failure = str(error) or type(error).__name__
        if status is None:
            return Answer(None, failure)
        return Answer(status, _described(status, text), pause)


def _pause(answer: httpx.Response) -> float:
    """410 means that nothing is wanted any more: whoever stops that changes WEBHOOK_URL. We ask again now and then."""
    if answer.status_code == HTTPStatus.GONE:
        return LONGEST_PAUSE_SECONDS
    if answer.status_code not in _BUSY:
        return 0.0
    return min(max(_seconds(answer.headers.get("retry-after", "")), 0.0), LONGEST_PAUSE_SECONDS)


def _seconds(retry_after: str) -> float:
    """RFC 9110, 10.2.3: seconds, or a date. Anything else is none."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:10])
    try:
        at = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return 0.0
    return ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()


async def _beginning(answer: httpx.Response) -> str:
    """A short answer is read to its end, so that its connection serves again; of a longer one nobody needs more."""
    read = bytearray()
    async for chunk in answer.aiter_raw():
        read += chunk
        if len(read) > MOST_BYTES:
            break
    text = bytes(read[:MOST_BYTES]).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in text)


def _described(status: int, text: str) -> str:
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    said = " ".join(text.split())[:MOST_CHARACTERS]
    return f"{status}{phrase}" + (f": {said}" if said else "")
