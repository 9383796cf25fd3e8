"""A finalized period never changes: insert, update, delete, truncate and recalculation are refused, whoever asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, event, finalize, ingest, moment, month, value

WHO = ("postgres", "goldleaves_owner", "goldleaves_kernel")
PARENT = "metering.usage_events"
LAST, CURRENT = moment(1, days=9), moment(0, minutes=1)
PARTITION = f"metering.usage_events_{LAST:%Y_%m}"
CURRENT_PARTITION = f"metering.usage_events_{CURRENT:%Y_%m}"
COLUMNS = "(organization_id, occurred_at, source, event_name, quantity, recorded_generation)"
INSERT = f"{COLUMNS} values (%(org)s, {{at}}, 'sql', 'api.request', 1, 1)"
# A truncate takes them along.
LEDGERS = (
    *(f"billing.{name}" for name in ("payments", "credit_notes", "credit_note_lines", "refunds", "balance_entries")),
    "stripe.invoice_items",
)
LAST_MOMENT = "%(end)s::timestamptz - interval '1 microsecond'"


@dataclass(frozen=True)
class Closed:
    """Last month is finalized and has an event on its invoice; this month is open and has one too."""

    database: Database
    organization: UUID
    other: UUID


@pytest.fixture(scope="module")
def closed(shared_database: Database, make_organization: MakeOrganization) -> Closed:
    organization, other = make_organization(shared_database).id, make_organization(shared_database).id
    with shared_database.connect() as connection:
        for each in (organization, other):
            ingest(connection, [event("last", LAST, quantity=3), event("current", CURRENT)], each)
        finalize(connection, organization, month(1))
        # The kernel and the owner may do less than this. What protects the period must not be that they may not.
        for schema, table in [
            ("metering", PARENT),
            ("metering", PARTITION),
            ("metering", CURRENT_PARTITION),
            ("billing", "billing.billing_periods"),
            ("billing", "billing.invoices"),
            ("billing", "billing.invoice_lines"),
            *((ledger.partition(".")[0], ledger) for ledger in LEDGERS),
        ]:
            connection.execute(f"grant usage on schema {schema} to goldleaves_kernel")
            connection.execute(f"grant all on {table} to goldleaves_kernel")
            connection.execute(f"create policy by_test_owner on {table} to goldleaves_owner using (true)")
            if table in (PARTITION, CURRENT_PARTITION):
                connection.execute(f"create policy by_test on {table} to goldleaves_kernel using (true)")
    return Closed(shared_database, organization, other)


def attempt(closed: Closed, who: str, statement: str, **more: Any) -> None:
    """As that role, and taken back: what wrongly goes through must not disturb the next test."""
    with closed.database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(f"set local role {who}")
        parameters = {
            "org": closed.organization,
            "other": closed.other,
            "last": LAST,
            "now": CURRENT,
            "end": moment(0),
            "start": moment(1),
            **more,
        }
        connection.execute(statement, parameters)


EVENTS = {
    f"{name} {table}": statement.format(table=table)
    for table in (PARENT, PARTITION)
    for name, statement in {
        "insert into": f"insert into {{table}} {INSERT.format(at='%(last)s')}",
        "insert many into": (
            f"insert into {{table}} {COLUMNS} "
            "select o, t, 'sql', 'api.request', 1, 1 from unnest(array[%(org)s, %(other)s]) o, "
            "unnest(array[%(last)s, %(start)s]) t"
        ),
        "update quantity in": "update {table} set quantity = 4 where occurred_at = %(last)s",
        "update payer in": "update {table} set payer_user_id = %(org)s where organization_id = %(org)s",
        "update nothing in": "update {table} set dimensions = dimensions where organization_id = %(org)s",
        "upsert into": (
            "insert into {table} (organization_id, occurred_at, id, source, event_name, quantity, recorded_generation) "
            "select organization_id, occurred_at, id, source, event_name, quantity, recorded_generation "
            "from {table} where organization_id = %(org)s and occurred_at = %(last)s "
            "on conflict (organization_id, occurred_at, id) do update set quantity = 0"
        ),
        "give away from": "update {table} set organization_id = %(other)s where organization_id = %(org)s",
        "take into": "update {table} set organization_id = %(org)s where organization_id = %(other)s",
        "move within": "update {table} set occurred_at = %(start)s where organization_id = %(org)s",
        "delete from": "delete from {table} where organization_id = %(org)s",
        "delete all from": "delete from {table}",
        "truncate": "truncate {table}",
    }.items()
} | {
    "move out": f"update {PARENT} set occurred_at = %(now)s where organization_id = %(org)s and occurred_at = %(last)s",
    "move in": f"update {PARENT} set occurred_at = %(last)s where organization_id = %(org)s and occurred_at = %(now)s",
    "insert first moment": f"insert into {PARENT} {INSERT.format(at='%(start)s')}",
    "insert last moment": f"insert into {PARENT} {INSERT.format(at=LAST_MOMENT)}",
    "merge": (
        f"merge into {PARENT} e using (select %(org)s::uuid as o) s on e.organization_id = s.o "
        "when matched then update set quantity = 0"
    ),
}
MONEY = {
    "delete period": "delete from billing.billing_periods where organization_id = %(org)s and status = 'finalized'",
    "reopen": "update billing.billing_periods set status = 'open', finalized_at = null where organization_id = %(org)s",
    "refinalize": "update billing.billing_periods set finalized_at = now() where status = 'finalized'",
    "shorten": "update billing.billing_periods set period_end = %(last)s where status = 'finalized'",
    "rename zone": "update billing.billing_periods set timezone = 'Asia/Tokyo' where status = 'finalized'",
    "truncate periods": "truncate billing.billing_periods cascade",
    "change total": "update billing.invoices set total_cents = 0",
    "change number": "update billing.invoices set number = 'x'",
    "delete invoice": "delete from billing.invoices",
    "second invoice": (
        "insert into billing.invoices (organization_id, number, period_start, period_end, currency, total_cents) "
        "values (%(org)s, 'x', %(start)s, %(end)s, 'usd', 1)"
    ),
    "change payer": "update billing.invoices set payer_user_id = organization_id",
    "invoice to somebody else": (
        "insert into billing.invoices "
        "(organization_id, number, period_start, period_end, payer_user_id, currency, total_cents) "
        "values (%(org)s, 'x', %(start)s, %(end)s, %(other)s, 'usd', 1)"
    ),
    "truncate invoices": "truncate billing.invoices cascade",
    "add line": (
        "insert into billing.invoice_lines select organization_id, invoice_id, 99, meter_code, description, unit, "
        "events, quantity, unit_amount_cents, amount_cents from billing.invoice_lines"
    ),
    "change line": "update billing.invoice_lines set amount_cents = amount_cents",
    "delete line": "delete from billing.invoice_lines",
    "truncate lines": "truncate billing.invoice_lines cascade",
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("statement", [*EVENTS.values(), *MONEY.values()], ids=[*EVENTS, *MONEY])
def test_nothing_changes_a_finalized_period(closed: Closed, who: str, statement: str) -> None:
    with pytest.raises(psycopg.Error, match="BILLING_PERIOD_LOCKED: ") as refused:
        attempt(closed, who, statement)
    assert refused.value.sqlstate == "PT409"


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(
    "statement",
    [
        f"insert into {PARENT} {INSERT.format(at='%(now)s')}",
        f"insert into {PARENT} {INSERT.format(at='%(end)s')}",
        f"insert into {PARENT} {INSERT.format(at='%(start)s')}".replace("%(org)s", "%(other)s"),
        f"update {PARENT} set quantity = 7 where organization_id = %(org)s and occurred_at = %(now)s",
        f"update {PARENT} set occurred_at = %(now)s where organization_id = %(other)s",
        f"delete from {PARENT} where organization_id = %(other)s",
        "update billing.billing_periods set status = status where status = 'open'",
    ],
)
def test_what_is_open_can_still_change(closed: Closed, who: str, statement: str) -> None:
    """A guard that refuses everything would pass the tests above."""
    attempt(closed, who, statement)


@pytest.mark.parametrize("table", [PARTITION, CURRENT_PARTITION])
def test_copy_is_refused_too(closed: Closed, table: str) -> None:
    late = table == PARTITION
    with closed.database.connect() as connection, connection.transaction(force_rollback=True):
        cursor = connection.cursor()

        def copy() -> None:
            with cursor.copy(f"copy {PARENT} {COLUMNS} from stdin") as rows:
                rows.write_row([closed.organization, LAST if late else CURRENT, "copy", "api.request", 1, 1])

        if late:
            with pytest.raises(psycopg.Error, match="BILLING_PERIOD_LOCKED: "):
                copy()
        else:
            copy()


def test_recalculation_is_refused(closed: Closed) -> None:
    with closed.database.connect() as connection:
        with pytest.raises(psycopg.Error, match="BILLING_PERIOD_LOCKED: ") as refused:
            connection.execute("select billing.recalculate_period(%s, %s)", [closed.organization, month(1)])
        assert refused.value.sqlstate == "PT409"
        assert value(connection, "select count(*) from billing.recalculate_period(%s, %s)", closed.other, month(1)) == 1


def test_finalizing_again_returns_the_same_invoice(closed: Closed) -> None:
    def everything(connection: Connection) -> list[tuple[Any, ...]]:
        return [
            row
            for table in ("billing_periods", "invoices", "invoice_lines")
            for row in connection.execute(
                f"select t::text, xmin::text from billing.{table} t where organization_id = %s order by 1",
                [closed.organization],
            )
        ]

    with closed.database.connect() as connection:
        before = everything(connection)
        first = finalize(connection, closed.organization, month(1))
        assert finalize(connection, closed.organization, month(1)) == first
        assert everything(connection) == before


def test_an_organization_with_an_invoice_is_not_deleted(closed: Closed) -> None:
    with pytest.raises(psycopg.Error, match="ORGANIZATION_BILLED: "):
        attempt(closed, "postgres", "delete from tenancy.organizations where id = %(org)s")
    with pytest.raises(psycopg.Error, match="AUDITED_TABLE: "):
        attempt(closed, "postgres", "truncate tenancy.organizations cascade")


def test_what_lies_before_a_finalized_period_is_finalized_too(
    closed: Closed, make_organization: MakeOrganization
) -> None:
    """The chain grows to the left: nothing of the neighbour changes, and no time gets an invoice afterwards."""
    organization = make_organization(closed.database).id
    with closed.database.connect() as connection:
        invoice = finalize(connection, organization, month(1))
        earlier = [event("earlier", moment(3, days=1))]
        refused = ingest(connection, earlier, organization).rejected
        assert [refusal.code for refusal in refused] == ["BILLING_PERIOD_LOCKED"]
        assert ingest(connection, earlier, organization, source="gateway", late="adjust").accepted == 1
        statuses = connection.execute(
            """
            select status from billing.billing_periods
            where organization_id = %s and period_start < %s order by period_start
            """,
            [organization, moment(0)],
        ).fetchall()
        assert statuses == [("finalized",)] * 3
        assert finalize(connection, organization, month(1)) == invoice
        assert value(connection, "select count(*) from billing.invoices where organization_id = %s", organization) == 1


def test_late_events_that_may_not_be_refused_count_in_the_open_period(
    closed: Closed, make_organization: MakeOrganization
) -> None:
    organization = make_organization(closed.database).id
    with closed.database.connect() as connection:
        finalize(connection, organization, month(1))
        answer = ingest(
            connection,
            [event("late", LAST), event("in time", CURRENT), event("no time")],
            organization,
            source="gateway",
            late="adjust",
        )
        assert (answer.accepted, answer.answered) == (3, 3)
        rows = connection.execute(
            """
            select idempotency_key, event_type, belongs_at, occurred_at >= %s and occurred_at <= clock_timestamp()
            from metering.usage_events where organization_id = %s order by 1
            """,
            [moment(0), organization],
        ).fetchall()
        assert rows == [
            ("in time", "usage", None, True),
            ("late", "adjustment", LAST, True),
            ("no time", "usage", None, True),
        ]
        # It is billed once: in the open period, at that period's price.
        assert value(connection, "select quantity from billing.recalculate_period(%s, %s)", organization, month(0)) == 3
        refused = ingest(connection, [event("other", LAST)], organization, late="reject")
        assert [refusal.code for refusal in refused.rejected] == ["BILLING_PERIOD_LOCKED"]
