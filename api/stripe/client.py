"""Everything that is asked of Stripe goes through here: one timeout, one circuit breaker, and three ways to fail.

While Stripe is away the breaker is open, and whoever asks is told so at once, without waiting: nothing of ours hangs
because something of theirs does. Calls are not repeated here. Those that wait in an outbox are sent again by whoever
sends them, under an identifier that counts once; a person who gets an error presses the button again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Final, TypeVar

import stripe
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from api.errors import Problem, problem

CONNECT_SECONDS: Final = 3.0
CALL_SECONDS: Final = 15.0
FAILURES_TO_OPEN: Final = 5  # in a row
OPEN_SECONDS: Final = 15.0
CONNECTIONS: Final = 32
LONGEST_PAUSE: Final = timedelta(hours=1)

T = TypeVar("T")


class StripeError(Exception):
    """Stripe did not do what was asked. The text says why, for people, and holds no secret."""


class StripeAway(StripeError):
    """It was not reached, did not answer in time, or said that the fault is its own (5xx). It may have done it."""


class StripeBusy(StripeError):
    """It has too much to do (429), and has not done it. `pause` is what it asked for, in seconds."""

    def __init__(self, text: str, pause: float) -> None:
        super().__init__(text)
        self.pause = pause


class StripeRefused(StripeError):
    """It will not do it, and would not do it later (4xx). `code` is Stripe's own, such as resource_missing."""

    def __init__(self, text: str, status: int, code: str | None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


class Stripe:
    """An account at Stripe, by its secret key."""

    def __init__(self, secret_key: str, base: str | None = None) -> None:
        # Restricted keys begin with rk_; what is of live mode says so in either.
        self.is_live = "_live_" in secret_key[:9]
        self._http = stripe.HTTPXClient(timeout=CALL_SECONDS)
        self._client = stripe.StripeClient(
            secret_key,
            base_addresses={"api": base, "meter_events": base} if base is not None else None,
            http_client=self._http,
            max_network_retries=0,
        )
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=FAILURES_TO_OPEN, default_ttl=OPEN_SECONDS, exclude=[StripeBusy, StripeRefused]
        )

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def ask(self, call: Callable[[stripe.StripeClient], Awaitable[T]]) -> T:
        """`await stripe.ask(lambda s: s.v1.customers.retrieve_async(id))`. Raises StripeError: one of the three."""
        breaker = await self._breakers.get_breaker("stripe")
        try:
            async with breaker:
                return await self._ask(call)
        except OpenedState:
            raise StripeAway("it has not answered for a while, and is asked again in some seconds") from None

    async def _ask(self, call: Callable[[stripe.StripeClient], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await call(self._client)
        except TimeoutError:
            raise StripeAway(f"no answer within {CALL_SECONDS:.0f} s") from None
        except stripe.StripeError as error:
            raise _told(error) from None


def unavailable(error: StripeError) -> Problem:
    """The answer for whoever asked us, when Stripe did not do its part."""
    if isinstance(error, StripeRefused):
        return problem("STRIPE_REFUSED", f"Stripe refused it: {error}")
    return problem("STRIPE_UNAVAILABLE", "Stripe cannot be reached", hint="Try again in a moment. Nothing was changed.")


def _told(error: stripe.StripeError) -> StripeError:
    """An answer that cannot be read is none."""
    text = (error.user_message or str(error) or type(error).__name__)[:500]
    status = error.http_status
    if status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(error, stripe.APIConnectionError):
        return StripeAway(text)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return StripeBusy(text, _pause(error))
    if status >= HTTPStatus.BAD_REQUEST:
        # 409: another request has the idempotency key right now; 408 and 425: try again.
        if status in (HTTPStatus.CONFLICT, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY):
            return StripeBusy(text, _pause(error))
        return StripeRefused(text, status, error.code)
    return StripeAway(text)


def _pause(error: stripe.StripeError) -> float:
    value = str((error.headers or {}).get("retry-after", ""))
    seconds = float(value[:10]) if value.isascii() and value.isdigit() else 1.0
    return min(seconds, LONGEST_PAUSE.total_seconds())
