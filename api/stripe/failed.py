"""What a command about Stripe says when it cannot go on. Apart, since whoever explains errors imports no SDK."""

from __future__ import annotations


class StripeCommandFailed(Exception):
    """The reason, in one line."""
