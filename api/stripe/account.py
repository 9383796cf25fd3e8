"""What operators say of the account at Stripe, from the command line: whose customer is whose, and which price is which
plan. `url` is that of goldleaves_migrator, or of a superuser.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from api.stripe.failed import StripeCommandFailed
from api.stripe.kernel import as_kernel


@dataclass(frozen=True, slots=True)
class Price:
    """The newest one of a plan is what a checkout sells."""

    plan: str
    price_id: str
    since: datetime


def link(url: str, organization: str, customer_id: str, is_live: bool | None) -> None:
    """Raises StripeCommandFailed for an organization that there is not, psycopg.Error for what may not be linked."""
    with as_kernel(url) as conn:
        conn.execute("select stripe.link(%s, %s, %s)", [_organization(conn, organization), customer_id, is_live])


def organization_id(url: str, organization: str) -> UUID:
    """By its id or slug. Raises StripeCommandFailed for one that there is not."""
    with as_kernel(url) as conn:
        return _organization(conn, organization)


def _organization(conn: psycopg.Connection[tuple[Any, ...]], organization: str) -> UUID:
    row = conn.execute("select tenancy.find_organization(%s)", [organization]).fetchone()
    found: UUID | None = row[0] if row is not None else None
    if found is None:
        raise StripeCommandFailed(f"There is no organization {organization!r}. Name it by its id or slug.")
    return found


def set_price(url: str, plan: str, price_id: str) -> None:
    """Raises psycopg.Error for a plan that there is not, and a price that is another plan's."""
    with as_kernel(url) as conn:
        conn.execute("select stripe.set_price(%s, %s)", [plan, price_id])


def prices(url: str, plan: str | None) -> list[Price]:
    """The newest ones of each plan first."""
    with as_kernel(url) as conn, conn.cursor(row_factory=class_row(Price)) as cursor:
        return cursor.execute("select plan, price_id, since from stripe.prices_of(%s)", [plan]).fetchall()
