"""Everything that is asked of Stripe goes through here: one timeout, one circuit breaker, and four ways to fail.

While Stripe is away the breaker is open, and whoever asks is told so at once, without waiting: nothing of ours hangs
because something of theirs does. Calls are not repeated here. Those that wait in an outbox are sent again by whoever
sends them, under an identifier that counts once; a person who gets an error presses the button again.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final, TypeVar

import httpx
import stripe
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import HALF_OPENED, OPENED, OpenedState

from api.stripe.failures import StripeAway, StripeBusy, StripeDenied, StripeError, StripeRefused, unavailable

__all__ = ["Stripe", "StripeAway", "StripeBusy", "StripeDenied", "StripeError", "StripeRefused", "unavailable"]

CONNECT_SECONDS: Final = 3.0
CALL_SECONDS: Final = 15.0
FAILURES_TO_OPEN: Final = 5  # in a row
OPEN_SECONDS: Final = 15.0
LONGEST_PAUSE: Final = timedelta(hours=1)
DENIED_PAUSE: Final = timedelta(minutes=1)
OUTCOMES: Final = ("done", "away", "busy", "denied", "refused", "spared")
_NAME: Final = "stripe"
_SECRET: Final = re.compile(r"\b(?:sk|rk|pk|whsec)_\w+(?:\*+\w*)?")
_OPEN: Final = "it has not answered for a while, and is asked again in some seconds"

# What its SDK raises over an answer that is JSON, and not of the shape that it thought of, or is no UTF-8.
_UNREADABLE: Final = (AttributeError, LookupError, TypeError, ValueError)

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Stripe(Collector):
    """An account at Stripe, by its secret key."""

    def __init__(
        self,
        secret_key: str,
        base: str | None = None,
        *,
        call_seconds: float = CALL_SECONDS,
        open_seconds: float = OPEN_SECONDS,
    ) -> None:
        # Restricted keys begin with rk_; what is of live mode says so in either.
        self.is_live = "_live_" in secret_key[:9]
        self._call_seconds = call_seconds
        stripe.enable_telemetry = False
        # The whole call is limited where it is made: httpx counts each read by itself.
        self._http = _Http(timeout=httpx.Timeout(call_seconds, connect=min(CONNECT_SECONDS, call_seconds)))
        self._client = stripe.StripeClient(
            secret_key,
            base_addresses={"api": base, "meter_events": base} if base is not None else None,
            http_client=self._http,
            max_network_retries=0,
        )
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=FAILURES_TO_OPEN, default_ttl=open_seconds, exclude=[StripeBusy, StripeRefused]
        )
        self._outcomes: Counter[str] = Counter()
        self._state = ""

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def ask(self, call: Callable[[stripe.StripeClient], Awaitable[T]]) -> T:
        """`await stripe.ask(lambda s: s.v1.customers.retrieve_async(id))`. Raises StripeError: one of the four."""
        breaker = await self._breakers.get_breaker(_NAME)
        outcome = "spared"
        try:
            if breaker.context.state == HALF_OPENED:  # one is out to see whether it answers again
                raise StripeAway(_OPEN)
            async with breaker:
                outcome = "away"
                answer = await self._ask(call)
                outcome = "done"
                return answer
        except OpenedState:
            raise StripeAway(_OPEN) from None
        except StripeError as error:
            if outcome != "spared":
                outcome = _outcome(error)
            raise
        finally:
            self._outcomes[outcome] += 1
            self._state = breaker.context.state

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "goldleaves_stripe_calls",
            "Calls of Stripe, by what came of them; spared: it was not asked, since it had not answered for a while.",
            labels=["outcome"],
        )
        for outcome in OUTCOMES:
            calls.add_metric([outcome], self._outcomes[outcome])
        yield calls
        yield GaugeMetricFamily(
            "goldleaves_stripe_away",
            "1: Stripe has not answered for a while, and is asked only now and then.",
            value=float(self._state in (OPENED, HALF_OPENED)),
        )

    async def _ask(self, call: Callable[[stripe.StripeClient], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._call_seconds):
                return await call(self._client)
        except TimeoutError:
            raise StripeAway(f"no answer within {self._call_seconds:.0f} s") from None
        except stripe.StripeError as error:
            raise _told(error) from None
        except _UNREADABLE as error:
            log.warning("stripe_answer_not_read", exc_info=True)
            raise StripeAway(f"its answer cannot be read: {type(error).__name__}") from None


class _Http(stripe.HTTPXClient):
    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """All that Stripe says is an object. Its SDK takes a list, or nothing, for an answer, too."""
        content, status, said = await super().request_async(method, url, headers, post_data)
        if status < HTTPStatus.BAD_REQUEST and not content.lstrip().startswith(b"{"):
            raise StripeAway(f"{status} that is not of Stripe")
        return content, status, said


def _outcome(error: StripeError) -> str:
    if isinstance(error, StripeDenied):
        return "denied"
    if isinstance(error, StripeBusy):
        return "busy"
    return "refused" if isinstance(error, StripeRefused) else "away"


def _told(error: stripe.StripeError) -> StripeError:
    """An answer that cannot be read is none."""
    text = _SECRET.sub("(a key)", str(error.user_message or error) or type(error).__name__)[:500]
    status = error.http_status
    if status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(error, stripe.APIConnectionError):
        return StripeAway(text)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return StripeBusy(text, _pause(error))
    if status < HTTPStatus.BAD_REQUEST or not isinstance(error.json_body, dict) or "error" not in error.json_body:
        return StripeAway(f"{status} that is not of Stripe: {text}"[:500])
    # 409: another request has the idempotency key right now; 408 and 425: try again.
    if status in (HTTPStatus.CONFLICT, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY):
        return StripeBusy(text, _pause(error))
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return StripeDenied(text, DENIED_PAUSE.total_seconds())
    return StripeRefused(text, status, error.code or getattr(error.error, "type", None))


def _pause(error: stripe.StripeError) -> float:
    value = str((error.headers or {}).get("retry-after", ""))
    seconds = float(value[:10]) if value.isascii() and value.isdigit() else 1.0
    return min(seconds, LONGEST_PAUSE.total_seconds())
