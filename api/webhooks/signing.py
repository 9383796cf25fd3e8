"""Signatures of messages. Source: https://github.com/standard-webhooks/standard-webhooks, symmetric signatures (v1)."""

from __future__ import annotations

import binascii
from base64 import b64decode
from datetime import UTC, datetime
from typing import Final

from standardwebhooks import Webhook

PREFIX: Final = "whsec_"
FEWEST_BYTES: Final = 24
MOST_BYTES: Final = 64
_MAKE_ONE: Final = "make one with `echo whsec_$(openssl rand -base64 32)`"


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """The keys of WEBHOOK_SECRET, which are separated by spaces. Raises ValueError, which shows none of them."""
    keys = tuple(_parse(secret, number) for number, secret in enumerate(text.split(), 1))
    if not keys:
        raise ValueError(f"expected whsec_ and base64, got nothing; {_MAKE_ONE}")
    return keys


def _parse(secret: str, number: int) -> bytes:
    encoded = secret.removeprefix(PREFIX)
    try:
        key = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if encoded == secret or not key:
        raise ValueError(f"secret {number} is not whsec_ and base64; {_MAKE_ONE}")
    if not FEWEST_BYTES <= len(key) <= MOST_BYTES:
        raise ValueError(f"secret {number} has {len(key)} bytes, expected {FEWEST_BYTES} to {MOST_BYTES}")
    return key


class Signer:
    """Signs with each key, so that a receiver may go from one to the next whenever it wants to."""

    def __init__(self, secrets: str) -> None:
        self._keys = tuple(Webhook(key) for key in parse_secrets(secrets))

    def headers(self, message_id: str, body: str, at: datetime | None = None) -> dict[str, str]:
        """`at`: when it is sent. Receivers refuse what was signed more than minutes ago."""
        at = at if at is not None else datetime.now(UTC)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(key.sign(message_id, at, body) for key in self._keys),
        }
