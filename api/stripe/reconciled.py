"""Reconciling from the command line, with a connection of its own: of all organizations, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from api.stripe.client import Stripe
from api.stripe.failed import StripeCommandFailed
from api.stripe.failures import StripeError
from api.stripe.reconciliation import Finding, Period, Reconciliation

PAGE: Final = 4


@dataclass(frozen=True, slots=True)
class Reconciled:
    organization: str
    period_start: str
    findings: list[Finding]

    @property
    def drifting(self) -> int:
        return sum(1 for finding in self.findings if finding.drift)


async def reconcile_all(
    secret_key: str,
    base: str | None,
    url: str,
    at: datetime | None,
    organization: str | None,
    tell: Callable[[Reconciled], None],
) -> None:
    """`at`: the periods around it; None: the current ones. `organization`: slug or id; None: all. `url` is that of
    goldleaves_migrator. Raises StripeCommandFailed.
    """
    stripe = Stripe(secret_key, base)
    try:
        async with await psycopg.AsyncConnection.connect(
            url, application_name="goldleaves stripe reconcile", autocommit=True
        ) as conn:
            reconciliation = Reconciliation(stripe)
            books = _Books(conn)
            found = False
            async for periods in books.periods(at, organization):
                found = True
                at_once = (reconciliation.reconcile(books, period) for period in periods)
                for done in await asyncio.gather(*at_once, return_exceptions=True):
                    if isinstance(done, BaseException):
                        raise done
                    if done is not None:
                        question, findings = done
                        tell(Reconciled(question["organization"], question["period_start"], findings))
            if organization is not None and not found:
                raise StripeCommandFailed(
                    f"There is no organization {organization} with a billing period then in which Stripe's invoice "
                    "counts (INVOICE_MODE)."
                )
    except StripeError as error:
        raise StripeCommandFailed(f"Stripe: {str(error).rstrip('.')}. What was said before is stored.") from None
    finally:
        await stripe.close()


class _Books:
    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._conn = conn

    async def periods(self, at: datetime | None, organization: str | None) -> AsyncIterator[list[Period]]:
        """Some at a time: Stripe takes its time, and answers several at once."""
        after: UUID | None = None
        while True:
            async with self._conn.cursor(row_factory=class_row(Period)) as cursor:
                await cursor.execute(
                    "select * from stripe.periods_at_stripe(%s, %s, %s, %s)", [at, organization, after, PAGE]
                )
                page = await cursor.fetchall()
            if page:
                yield page
            if len(page) < PAGE:
                return
            after = page[-1].organization_id

    async def reconciliation_question(self, period: Period) -> dict[str, Any] | None:
        cursor = await self._conn.execute(
            "select stripe.reconciliation_question(%s, %s)", [period.organization_id, period.period_start]
        )
        row = await cursor.fetchone()
        return row[0] if row is not None else None

    async def reconcile(self, period: Period, theirs: str) -> list[Finding]:
        async with self._conn.cursor(row_factory=class_row(Finding)) as cursor:
            await cursor.execute(
                "select kind, subject, ours, theirs, explained, drift, cause from stripe.reconcile(%s, %s, %s::jsonb)",
                [period.organization_id, period.period_start, theirs],
            )
            return await cursor.fetchall()
