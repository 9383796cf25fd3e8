"""Whether Stripe has sent what came. Source: docs.stripe.com/webhooks, verified by Stripe's own library.

Kept apart, since that library takes a while to import: only a sidecar with a secret does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from stripe import SignatureVerificationError, WebhookSignature

from api.errors import Problem, problem

TOLERANCE_SECONDS: Final = 300  # by either clock
MOST_BYTES: Final = 4096  # of the header: a signature for each of a few secrets


class Signatures:
    """Verifies with each of several secrets, so that one can follow another without a webhook being lost."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = tuple(secrets)

    def verify(self, payload: str, header: bytes | None) -> None:
        """Raises INVALID_SIGNATURE (400)."""
        if header is None:
            raise refused("there is no Stripe-Signature")
        # What is not ASCII the library compares with an exception.
        if len(header) > MOST_BYTES or not header.isascii():
            raise refused("Stripe-Signature is not one of Stripe's")
        signature = header.decode("ascii")
        if not any(self._is_by(secret, payload, signature) for secret in self._secrets):
            raise refused("none of our secrets has made the signature")
        # Read as the library does, which lets be what is from the future.
        signed_at = int(next(value[0] for name, *value in _parts(signature) if name == "t"))
        if abs(time.time() - signed_at) > TOLERANCE_SECONDS:
            raise refused(f"it was signed more than {TOLERANCE_SECONDS} s ago, or ahead of our clock")

    @staticmethod
    def _is_by(secret: str, payload: str, signature: str) -> bool:
        try:
            WebhookSignature.verify_header(payload, signature, secret, tolerance=None)
        except SignatureVerificationError:
            return False
        return True


def _parts(signature: str) -> Iterator[list[str]]:
    return (part.split("=", 2) for part in signature.split(","))


def refused(why: str) -> Problem:
    return problem("INVALID_SIGNATURE", why)
