"""The database as commands about Stripe use it: as the role that owns these functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from api.stripe.failed import StripeCommandFailed


@contextmanager
def as_kernel(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """One transaction, in UTC. Raises StripeCommandFailed where the database is older than all this."""
    with psycopg.connect(url, application_name="goldleaves stripe") as conn:
        row = conn.execute("select to_regprocedure('stripe.set_price(text, text)') is not null").fetchone()
        if not row or not row[0]:
            raise StripeCommandFailed("This database knows nothing of Stripe yet. Run `goldleaves migrate` first.")
        conn.execute("set local timezone = 'UTC'")
        conn.execute("set local role goldleaves_kernel")
        yield conn


def require_migrated(url: str) -> None:
    """Raises StripeCommandFailed, as as_kernel() does."""
    with as_kernel(url):
        pass
