"""Whoever passes all triggers, as a superuser can, and changes what an invoice rests on, is found by verification, and
what was changed is named: the event with what it was, the hour, rollup, line, price, version, or entry of the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all, void
from tests.sql_requests import run
from tests.usage import Connection, event, finalize, ingest, moment, month, value

AT = moment(1, days=9, hours=5, minutes=20)
LATER = moment(1, days=12, hours=3)

METERS = """
insert into metering.meters
  (code, event_name, aggregation, value, filter, group_by, allow_negative, unit, unit_size, description) values
  ('v.tokens', 'v.tokens', 'sum', 'quantity', '{}', '{model}', false, 'token', 1, 'Tokens'),
  ('v.errors', 'v.tokens', 'count', 'quantity', '{"state": ["failed"]}', '{}', false, 'error', 1, 'Errors'),
  ('v.people', 'v.seen', 'unique', 'user_id', '{}', '{}', false, 'person', 1, 'People'),
  ('v.peak', 'v.seen', 'max', 'quantity', '{}', '{}', false, 'seat', 1, 'Peak'),
  ('v.stored', 'v.stored', 'weighted_sum', 'quantity', '{}', '{}', true, 'GiB-hour', 1, 'Storage')
"""
PRICES = """
insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents, dimension, dimension_value) values
  ('v.tokens', 'usd', '2020-01-01', 2, null, null),
  ('v.tokens', 'usd', '2020-01-01', 3, 'model', 'large'),
  ('v.people', 'usd', '2020-01-01', 100, null, null),
  ('v.peak', 'usd', '2020-01-01', 10, null, null),
  ('v.stored', 'usd', '2020-01-01', 1, null, null)
"""


@dataclass(frozen=True)
class Difference:
    what: str
    expected: str | None
    found: str | None
    detail: str

    def __str__(self) -> str:
        return f"{self.what}: {self.detail} ({self.expected} -> {self.found})"


@dataclass(frozen=True)
class Issued:
    connection: Connection
    organization: UUID
    other: UUID
    invoice: UUID


@pytest.fixture(scope="module")
def issued(
    shared_database: Database, make_organization: MakeOrganization, superuser: Connection, sidecar: Connection
) -> Issued:
    """Last month is closed: with keys and without, rolled up and not, corrected, and of every kind of meter."""
    organization, other = make_organization(shared_database).id, make_organization(shared_database).id
    connection = superuser
    connection.execute(METERS)
    with connection.transaction():
        connection.execute("set local session_replication_role = replica")  # prices do not reach back
        connection.execute(PRICES)
    connection.execute(
        "insert into metering.operation_weights (operation, effective_from, weight) values ('v.tokens', '-infinity', 2)"
    )
    connection.execute(
        "insert into billing.billing_terms (organization_id, tax_percent, tax_inclusive) values (%s, 20, false)",
        [organization],
    )
    large = {"dimensions": {"model": "large", "state": "failed"}}
    events = [
        event("a", AT, name="v.tokens", quantity=5, resource_id="r-1"),
        event("b", AT + timedelta(seconds=1), name="v.tokens", quantity=7, **large),
        event("c", LATER, name="v.tokens", quantity=11, dimensions={"model": "small"}),
        *(event(f"seen-{n}", AT + timedelta(hours=n), name="v.seen", quantity=n, user_id=f"u-{n}") for n in (1, 2, 3)),
        event("stored", AT, name="v.stored", quantity=10),
        event("free", AT, name="v.unmetered"),
        event("wrong", LATER, name="v.tokens", quantity=100),
    ]
    ingest(connection, events, organization)
    connection.execute(
        """
        insert into metering.usage_events
          (organization_id, occurred_at, source, event_name, quantity, recorded_generation)
        values (%s, %s, 'trigger', 'doc.upload', 1, (select max(generation) from metering.generations))
        """,
        [organization, AT],
    )
    ingest(connection, [event("other", AT)], other)
    void(connection, organization, "wrong")
    roll_up_all(sidecar)
    ingest(connection, [event("tail", LATER, name="v.tokens", quantity=13)], organization)
    invoice = finalize(connection, organization, month(1)).id
    roll_up_all(sidecar)
    assert verify(connection, organization, invoice) == []
    return Issued(connection, organization, other, invoice)


def verify(connection: Connection, organization: UUID, invoice: UUID) -> list[Difference]:
    rows = connection.execute("select * from billing.verify_invoice(%s, %s)", [organization, invoice]).fetchall()
    return [Difference(*row) for row in rows]


def tampered(issued: Issued, *statements: str) -> list[Difference]:
    """What verification says of it, with all triggers off. It is taken back."""
    parameters = {
        "org": issued.organization,
        "other": issued.other,
        "invoice": issued.invoice,
        "at": AT,
        "start": moment(1),
        "later": LATER,
        "in_period": AT + timedelta(days=1),
        "outside": moment(0, minutes=1),
    }
    with issued.connection.transaction(force_rollback=True):
        issued.connection.execute("set local session_replication_role = replica")
        for statement in statements:
            assert run(issued.connection, statement, parameters).rowcount, statement
        return verify(issued.connection, issued.organization, issued.invoice)


def event_id(issued: Issued, key: str) -> str:
    return str(value(issued.connection, "select id from metering.usage_events where idempotency_key = %s", key))


EVENT = "update metering.usage_events set {} where organization_id = %(org)s and idempotency_key = '{}'"
INVOICE = "where organization_id = %(org)s and id = %(invoice)s"
LINES = "where organization_id = %(org)s and invoice_id = %(invoice)s"
# What hides it from everything but the events and the audit log: the row of the invoice, and the digest made anew.
FORGED = f"""
  update billing.invoices i
  set digest = billing.digest_of(i, array(
    select l from billing.invoice_lines l where l.organization_id = i.organization_id and l.invoice_id = i.id
  ))
  {INVOICE}
"""
FORGED_FACTS = f"""
  update billing.invoices i set facts = billing.facts_of(i.organization_id, i.period_start, i.period_end) {INVOICE}
"""
REWRITTEN = "its row was written after the invoice was issued"

# statement, event, what its difference says: what it was, what it is, why
EVENTS = {
    "quantity": (
        EVENT.format("quantity = 4", "a"),
        "a",
        "quantity 5",
        "v.tokens 4, at",
        "not what was recorded under its key",
    ),
    "name": (
        EVENT.format("event_name = 'v.free'", "a"),
        "a",
        None,
        "v.free 5, at",
        "not what was recorded under its key",
    ),
    "resource": (EVENT.format("resource_id = 'r-2'", "a"), "a", None, "for r-2", "not what was recorded under its key"),
    "weighing": (EVENT.format("weighted_units = 1", "a"), "a", None, "weighing 1", REWRITTEN),
    "quantity in the tail": (
        EVENT.format("quantity = 12", "tail"),
        "tail",
        "quantity 13",
        "v.tokens 12",
        "under its key",
    ),
    "moved in the hour": (
        EVENT.format("occurred_at = occurred_at + interval '1 second'", "a"),
        "a",
        f"at {AT:%Y-%m-%dT%H:%M:%S}",
        "",
        "another time",
    ),
    "moved in the period": (
        EVENT.format("occurred_at = %(in_period)s", "a"),
        "a",
        f"at {AT:%Y-%m-%dT%H:%M:%S}",
        "v.tokens 5",
        "another time",
    ),
    "moved out of the period": (
        EVENT.format("occurred_at = %(outside)s", "a"),
        "a",
        f"at {AT:%Y-%m-%dT%H:%M:%S}",
        "v.tokens 5",
        "another time",
    ),
    "payer": (
        EVENT.format("payer_user_id = (select owner_user_id from tenancy.organizations where id = %(org)s)", "a"),
        "a",
        None,
        "paid by user",
        REWRITTEN,
    ),
    "dimensions": (EVENT.format("""dimensions = '{"model": "small"}'""", "b"), "b", None, "small", REWRITTEN),
    "belongs": (
        EVENT.format("event_type = 'adjustment', belongs_at = %(start)s - interval '1 day'", "a"),
        "a",
        None,
        "belonging to",
        REWRITTEN,
    ),
    "key": (
        EVENT.format("idempotency_key = 'z', quantity = 1", "a"),
        "a",
        None,
        "v.tokens 1",
        "not what it was recorded with",
    ),
    "another user": (EVENT.format("user_id = 'u-1'", "seen-2"), "seen-2", None, "by u-1", REWRITTEN),
    "a lower peak": (
        EVENT.format("quantity = 1", "seen-3"),
        "seen-3",
        "quantity 3",
        "v.seen 1",
        "not what was recorded",
    ),
    "what was stored": (
        EVENT.format("quantity = 1", "stored"),
        "stored",
        "quantity 10",
        "v.stored 1",
        "not what was recorded",
    ),
    "what no meter counts": (
        EVENT.format("quantity = 9", "free"),
        "free",
        "quantity 1",
        "v.unmetered 9",
        "under its key",
    ),
}


@pytest.mark.parametrize("case", EVENTS.values(), ids=EVENTS)
def test_a_changed_event_is_named(issued: Issued, case: tuple[str, str, str | None, str, str]) -> None:
    statement, key, was, is_now, sign = case
    found = tampered(issued, statement)
    named = [one for one in found if one.what == "event"]
    assert len(named) == 1, [str(one) for one in found]
    assert event_id(issued, key) in named[0].detail
    assert sign in named[0].detail
    assert is_now in (named[0].found or "")
    assert (named[0].expected or "").startswith(was or "")
    assert {"usage", "hour"} <= {one.what for one in found}, "what it rests on, and the hour"


def test_the_event_comes_first_and_what_follows_from_it_is_brief(issued: Issued) -> None:
    found = tampered(issued, EVENT.format("quantity = 4", "a"))
    assert list(dict.fromkeys(one.what for one in found)) == ["event", "hour", "usage", "line", "total"]
    told = [str(one) for one in found if one.what in ("event", "line", "total")]
    assert len(told) == 3, f"the tax, and the rest of the line, follow from these: {told}"


def test_a_quantity_of_one_is_known_where_nothing_was_rolled_up_of_it(issued: Issued) -> None:
    """As most events have."""
    [named] = [
        one
        for one in tampered(
            issued,
            EVENT.format("quantity = 3", "free"),
            "delete from metering.usage_rollups where organization_id = %(org)s and grain = 'hour'",
        )
        if one.what == "event"
    ]
    assert (named.expected, "v.unmetered 3" in str(named.found)) == ("quantity 1", True)


def test_a_row_without_a_key_is_named_by_when_it_was_written(issued: Issued) -> None:
    found = tampered(
        issued, "update metering.usage_events set quantity = 3 where organization_id = %(org)s and source = 'trigger'"
    )
    [named] = [one for one in found if one.what == "event"]
    assert REWRITTEN in named.detail and "doc.upload 3" in str(named.found)


def test_a_deleted_event_is_told_by_its_key(issued: Issued) -> None:
    found = tampered(
        issued, "delete from metering.usage_events where organization_id = %(org)s and idempotency_key = 'a'"
    )
    [named] = [one for one in found if one.what == "event"]
    assert re.search(r"the event of key [0-9a-f-]{36} is gone", named.detail)
    assert (named.expected or "").startswith(f"at {AT:%Y-%m-%dT%H:%M:%S}") and named.found == "gone"


def test_an_inserted_event_is_named(issued: Issued) -> None:
    found = tampered(
        issued,
        """
        insert into metering.usage_events
          (organization_id, occurred_at, source, idempotency_key, event_name, quantity, recorded_generation)
        values (%(org)s, %(at)s, 'api', 'made up', 'v.tokens', 50, 1)
        """,
    )
    [named] = [one for one in found if one.what == "event"]
    assert "never recorded" in named.detail and "made up" in named.detail


def test_a_void_made_by_hand_is_named(issued: Issued) -> None:
    found = tampered(
        issued,
        """
        insert into metering.usage_events
          (organization_id, occurred_at, source, event_type, event_name, quantity, corrects, metered_at,
           recorded_generation)
        select organization_id, occurred_at, source, 'void', event_name, - quantity, id, recorded_at, 1
        from metering.usage_events where organization_id = %(org)s and idempotency_key = 'a'
        """,
    )
    [named] = [one for one in found if one.what == "event"]
    assert "nothing was voided here" in named.detail


def test_an_event_in_another_organization_is_not_shown_there(issued: Issued) -> None:
    found = tampered(
        issued,
        """update metering.usage_events set organization_id = %(other)s
        where organization_id = %(org)s and idempotency_key = 'a'""",
    )
    [named] = [one for one in found if one.what == "event"]
    assert (named.found, event_id(issued, "a") in named.detail) == ("in another organization", True)
    assert str(issued.other) not in str(found), "whoever may verify this invoice may know nothing of the other one"


def test_two_events_that_changed_places_are_both_named(issued: Issued) -> None:
    found = tampered(
        issued,
        """
        update metering.usage_events e set quantity = o.quantity, dimensions = o.dimensions
        from metering.usage_events o
        where e.organization_id = %(org)s and o.organization_id = %(org)s
          and e.idempotency_key || o.idempotency_key in ('ab', 'ba')
        """,
    )
    named = " ".join(one.detail for one in found if one.what == "event")
    assert event_id(issued, "a") in named and event_id(issued, "b") in named


def test_a_partition_that_was_put_in_place_of_another(issued: Issued) -> None:
    name = f"metering.usage_events_{AT:%Y_%m}"
    found = tampered(
        issued,
        f"create temporary table held as select * from {name}",
        f"delete from {name} where organization_id = %(org)s",
        "update held set quantity = 6 where idempotency_key = 'a'",
        f"insert into {name} ({COLUMNS}) select {COLUMNS} from held where organization_id = %(org)s",
    )
    named = [one for one in found if one.what == "event"]
    assert event_id(issued, "a") in named[0].detail and named[0].expected == "quantity 5", "the surest first"
    assert event_id(issued, "c") not in str(found), "its hour is what it was"


COLUMNS = """organization_id, occurred_at, id, source, idempotency_key, event_type, event_name, quantity, unit,
  user_id, resource_id, request_id, dimensions, belongs_at, payer_user_id, recorded_at, recorded_generation,
  recorded_xid, workspace_id, context,
  weighted_units, corrects, metered_at"""

ROLLUP = "where organization_id = %(org)s and grain = '{}' and meter_code = '{}'"
OTHERS: dict[str, tuple[Any, ...]] = {
    "rollup of an hour": (
        f"update metering.usage_rollups set value = 1 {ROLLUP.format('hour', 'v.tokens')} and bucket_start > %(at)s",
        ("hour", "not what was rolled up"),
    ),
    "rollup of a period": (
        f"update metering.usage_rollups set value = value + 1 {ROLLUP.format('period', 'v.tokens')}",
        ("rollup", "not the sum of its hours"),
    ),
    "rollup of a peak": (
        f"update metering.usage_rollups set max_value = 9 {ROLLUP.format('period', 'v.peak')}",
        ("rollup", "v.peak"),
    ),
    "a person less": (
        f"delete from metering.unique_values {ROLLUP.format('period', 'v.people')} and events = 1",
        ("rollup", "v.people"),
    ),
    "amount of a line": (
        f"update billing.invoice_lines set amount_cents = 1 {LINES} and meter_code = 'v.peak'",
        ("line", "amount_cents"),
        ("digest", "not those that the digest"),
        ("total", "sum of the lines"),
    ),
    "a line less": (
        f"delete from billing.invoice_lines {LINES} and meter_code = 'v.peak'",
        ("line", "line usage v.peak is missing"),
        ("total", ""),
    ),
    "text of a line": (
        f"update billing.invoice_lines set description = 'x' {LINES}",
        ("digest", ""),
    ),
    "price": (
        "update billing.prices set unit_amount_cents = 1 where meter_code = 'v.peak'",
        ("price", "v.peak"),
        ("line", "v.peak"),
    ),
    "price that was put before": (
        """insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents, created_at)
        values ('v.peak', 'usd', '2021-01-01', 1, '2021-01-01')""",
        ("price", "v.peak"),
    ),
    "filter of a meter": (
        """update metering.meter_versions set filter = '{"state": ["failed", "ok"]}' where meter_code = 'v.errors'""",
        ("meter", "filter of version 1 of meter v.errors"),
    ),
    "meter counts no more": (
        "update metering.meter_versions set counts = false where meter_code = 'v.peak'",
        ("usage", "v.peak"),
        ("meter", "counts"),
    ),
    "weight": ("update metering.operation_weights set weight = 9 where operation = 'v.tokens'", ("weight", "v.tokens")),
    "weight gone": ("delete from metering.operation_weights where operation = 'v.tokens'", ("weight", "v.tokens")),
    "attribution": (
        """update tenancy.organizations set billing_user_id = owner_user_id, billing_start_at = %(in_period)s
        where id = %(org)s""",
        ("attribution", "who pays since when"),
        ("payer", "has no invoice"),
    ),
    "period reopened": (
        """update billing.billing_periods set status = 'open', finalized_at = null
        where organization_id = %(org)s and period_start = %(start)s""",
        ("period", "not closed"),
    ),
    "number": (
        f"update billing.invoices set number = left(number, 4) || '-0007' {INVOICE}",
        ("number", "-0001"),
        ("audit log", "number"),
    ),
    "digest alone": (f"update billing.invoices set digest = 'ff' {INVOICE}", ("digest", ""), ("audit log", "digest")),
    "balance": (
        f"update billing.invoices set balance_applied_cents = 1, amount_due_cents = amount_due_cents - 1 {INVOICE}",
        ("balance", ""),
    ),
    "profile": (
        f"""update billing.invoices set billing_profile = '{{"legal_name": "Mallory"}}' {INVOICE}""",
        ("digest", ""),
    ),
    "log": (
        "alter table audit.log disable trigger user; "
        "delete from audit.log where organization_id = %(org)s and target_type = 'invoice'",
        ("audit log", "no entry"),
    ),
    "log rewritten": (
        """alter table audit.log disable trigger user; update audit.log
        set after = after || '{"total_cents": 1}' where organization_id = %(org)s and target_type = 'invoice'""",
        ("audit log", "was rewritten"),
        ("audit log", "total_cents"),
    ),
}


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_what_was_changed_is_named(issued: Issued, case: tuple[Any, ...]) -> None:
    statement, *expected = case
    found = tampered(issued, *statement.split("; "))
    for what, detail in expected:
        assert any(one.what == what and detail in one.detail for one in found), [str(one) for one in found]


def test_rollups_that_are_wrong_do_not_make_the_invoice_wrong(issued: Issued) -> None:
    """Amounts come from the events then."""
    for case in ("rollup of an hour", "rollup of a period", "rollup of a peak", "a person less"):
        assert {one.what for one in tampered(issued, OTHERS[case][0])} <= {"hour", "rollup"}, case


def test_who_forges_the_rollups_and_the_digest_too_is_found_by_the_audit_log(issued: Issued) -> None:
    """An event, its rollups, the facts and the digest were all made to fit: the log has the first digest."""
    found = tampered(
        issued,
        EVENT.format("quantity = 4", "a"),
        """
        update metering.usage_rollups r set value = a.value, digest = a.digest
        from metering.counted_anew(%(org)s, %(start)s, %(start)s + interval '1 month', 'UTC') a
        where r.organization_id = %(org)s and r.grain = 'hour' and a.grain = 'hour' and a.meter_code = r.meter_code
          and a.bucket_start = r.bucket_start and a.groups = r.groups
        """,
        """
        update metering.usage_rollups r
        set (value, digest) = (
          select sum(h.value), sum(h.digest) from metering.usage_rollups h
          where h.organization_id = %(org)s and h.grain = 'hour' and h.meter_code = r.meter_code and h.groups = r.groups
            and h.bucket_start >= %(start)s and h.bucket_start < %(start)s + interval '1 month'
        )
        where organization_id = %(org)s and grain = 'period' and bucket_start = %(start)s
        """,
        FORGED_FACTS,
        """update billing.invoice_lines set quantity = quantity - 1
        where organization_id = %(org)s and meter_code = 'v.tokens' and groups = '{}'""",
        FORGED,
    )
    assert "digest" not in {one.what for one in found}
    assert "digest" in next(one for one in found if one.what == "audit log").detail
    [named] = [one for one in found if one.what == "event"]
    assert event_id(issued, "a") in named.detail, "looked for in all of the period, since no hour differs"
