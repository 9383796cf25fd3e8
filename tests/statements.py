"""What tests of statements say again and again: whose invoice counts in an organization, and a customer at Stripe."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row

from api.invoices.document import Document
from tests.usage import Connection, event, ingest, moment, value

Row = dict[str, Any]


def agree(superuser: Connection, organization: UUID, mode: str | None) -> None:
    """Whose invoice counts in periods that are made from now on."""
    superuser.execute(
        """
        insert into billing.billing_terms (organization_id, invoice_mode) values (%s, %s)
        on conflict (organization_id) do update set invoice_mode = excluded.invoice_mode
        """,
        [organization, mode],
    )


def link(superuser: Connection, organization: UUID, *, is_live: bool = False) -> str:
    """A customer of its own, by its id."""
    customer = f"cus_{organization.hex[-12:]}"
    superuser.execute("select stripe.link_customer(%s, %s, %s, 'tests')", [organization, customer, is_live])
    return customer


def use(
    superuser: Connection, organization: UUID, requests: int, months_ago: int = 1, at: datetime | None = None
) -> None:
    at = at or moment(months_ago, days=3)
    sent = [event(f"{at:%Y%m%d%H%M%S}-{number}", at) for number in range(requests)]
    assert ingest(superuser, sent, organization).accepted == requests


def arrive(superuser: Connection, organization: UUID, months_ago: int) -> None:
    """What is late is recorded now: put it where it should have come, in a month that is over."""
    at = moment(months_ago, days=10)
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")
        for table in ("usage_events", "event_keys"):
            superuser.execute(
                f"""
                update metering.{table} set occurred_at = %s
                where organization_id = %s and occurred_at > clock_timestamp() - interval '1 hour'
                """.encode(),
                [at, organization],
            )


def invoices(superuser: Connection, organization: UUID) -> list[Row]:
    return rows(superuser, "select * from billing.invoices where organization_id = %s order by issued_at", organization)


def items(superuser: Connection, organization: UUID) -> list[Row]:
    """Amounts for Stripe, in the order of the lines they came from."""
    query = "select * from stripe.invoice_items where organization_id = %s order by created_at, line_number, id"
    return rows(superuser, query, organization)


def document_of(superuser: Connection, statement: UUID) -> Document:
    found = value(
        superuser,
        """
        select billing.document_of(i, array(
          select l from billing.invoice_lines l where l.invoice_id = i.id order by l.line_number
        ))
        from billing.invoices i where i.id = %s
        """,
        statement,
    )
    return Document.of_json(json.dumps(found, default=str).encode())


def rows(superuser: Connection, query: str, *parameters: object) -> list[Row]:
    with superuser.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), parameters).fetchall()
