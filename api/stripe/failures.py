"""The ways in which Stripe does not do what it was asked. None needs its SDK, which takes a while to import."""

from __future__ import annotations

from api.errors import Problem, problem


class StripeError(Exception):
    """Stripe did not do what was asked. The text says why, for people, and holds no secret."""


class StripeAway(StripeError):
    """It was not reached, did not answer in time, or said that the fault is its own (5xx). It may have done it."""


class StripeBusy(StripeError):
    """It has too much to do (429), and has not done it. `pause` is what it asked for, in seconds."""

    def __init__(self, text: str, pause: float) -> None:
        super().__init__(text)
        self.pause = pause


class StripeDenied(StripeBusy):
    """It does not take our key for this (401, 403), and has not done it. It would once somebody has mended the key, so
    what waits is not lost: it is tried again, less often.
    """


class StripeRefused(StripeError):
    """It will not do it, and would not do it later (4xx). `code` is Stripe's own, such as resource_missing."""

    def __init__(self, text: str, status: int, code: str | None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


def unavailable(error: StripeError) -> Problem:
    """The answer for whoever asked us, when Stripe did not do its part."""
    if isinstance(error, StripeRefused | StripeDenied):
        return problem("STRIPE_REFUSED", f"Stripe refused it: {error}")
    return problem("STRIPE_UNAVAILABLE", "Stripe cannot be reached", hint="Try again in a moment. Nothing was changed.")
