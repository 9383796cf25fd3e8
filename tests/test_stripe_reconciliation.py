"""Reconciliation: whatever differs between what was recorded and what Stripe has is found, has its cause in words, and
is gone once it is mended; what only waits is no drift.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from api.database import Database as SidecarDatabase
from api.stripe import fixtures
from api.stripe.client import Stripe
from api.stripe.invoice_items import InvoiceItems
from api.stripe.reconciliation import Reconciling
from api.stripe.reporting import Reporting
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.meters import roll_up_all
from tests.sql_requests import Caller, request, run
from tests.stripe_server import StripeServer, stripe_server
from tests.usage import Connection, event, finalize, ingest, moment, month, value
from tests.usage_reports import link, register, reports

# The SDK hands its bodies to httpx in the way of earlier versions.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

METER = "api.request"
METERS = (METER, "t.thirds")
Json = dict[str, Any]


def number(text: Any) -> Any:
    return None if text is None else Decimal(text)


@pytest.fixture(scope="module")
def server() -> Iterator[StripeServer]:
    with stripe_server() as running:
        yield running


@pytest.fixture(scope="module")
def superuser(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as connection:
        connection.execute(
            """
            insert into metering.meters (code, event_name, unit, unit_size, description)
            values ('t.thirds', 't', 'unit', 3, 'test'), ('t.elsewhere', 'e', 'unit', 1, 'test')
            """
        )
        connection.execute(
            """
            insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents, created_at)
            values ('t.elsewhere', 'usd', now() + interval '1 second', 2, now())
            """
        )
        register(connection, *METERS)
        yield connection


@dataclass
class Books:
    """An organization whose invoices Stripe makes, and both sides of what was used."""

    database: Database
    superuser: Connection
    sidecar: Connection
    stripe: StripeServer
    organization: Organization

    @property
    def id(self) -> UUID:
        return self.organization.id

    @property
    def customer(self) -> str:
        return f"cus_{self.id.hex}"

    def use(self, quantity: float, *, name: str = METER, at: datetime | None = None) -> None:
        count = value(self.superuser, "select count(*) from metering.usage_events where organization_id = %s", self.id)
        answer = ingest(self.sidecar, [event(f"{self.id}-{count}", at, name=name, quantity=quantity)], self.id)
        assert answer.accepted == 1, answer
        roll_up_all(self.sidecar)

    def report(self) -> None:
        """As the sidecar does it, and at once."""
        self._by_sidecar(lambda database, stripe: Reporting(database, stripe).report_now(self.id, 60))

    def send_items(self) -> None:
        self._by_sidecar(lambda database, stripe: InvoiceItems(database, stripe).step())

    def forget_lag(self) -> None:
        """So long ago that Stripe's sums have it."""
        self.superuser.execute(
            "update stripe.meter_event_reports set acknowledged_at = acknowledged_at - interval '1 hour' "
            "where organization_id = %s",
            [self.id],
        )

    def step(self) -> Reconciling:
        """What the sidecar does by itself, of whatever organization is due."""

        async def steps(database: SidecarDatabase, stripe: Stripe) -> Reconciling:
            reconciling = Reconciling(database, stripe)
            await reconciling.step()
            return reconciling

        done: Reconciling = self._by_sidecar(steps)
        return done

    def _by_sidecar(self, work: Callable[[SidecarDatabase, Stripe], Any]) -> Any:
        async def run_it() -> Any:
            database, stripe = SidecarDatabase(self.database.sidecar, 4), Stripe(self.stripe.key, self.stripe.url)
            try:
                return await work(database, stripe)
            finally:
                await stripe.close()
                await database.close()

        return asyncio.run(run_it())

    def command(self, *arguments: str) -> Result:
        variables = {
            "MIGRATION_DATABASE_URL": self.database.migrator,
            "STRIPE_SECRET_KEY": self.stripe.key,
            "STRIPE_API_BASE": self.stripe.url,
        }
        given = ["stripe", "reconcile", "--organization", str(self.id), *arguments]
        return CliRunner().invoke(app, given, env=variables)

    def found(self, *arguments: str) -> dict[str, Json]:
        """By subject, what the command says."""
        result = self.command("--json", *arguments)
        assert result.exit_code in (0, 3), result.output
        rows = [json.loads(line) for line in result.output.splitlines()]
        assert result.exit_code == (3 if any(number(row["drift"]) for row in rows) else 0)
        return {row["subject"]: row for row in rows}

    def usage(self, *arguments: str) -> tuple[int, int | None, int, str]:
        row = self.found(*arguments)[METER]
        theirs = row["theirs"]
        return int(number(row["ours"])), None if theirs is None else int(theirs), int(row["drift"]), row["cause"]

    def told(self) -> list[Json]:
        rows = self.superuser.execute(
            "select payload from notifications.webhook_messages "
            "where organization_id = %s and type = 'stripe.drift' order by created_at",
            [self.id],
        ).fetchall()
        return [payload for (payload,) in rows]


@pytest.fixture
def books(
    shared_database: Database,
    superuser: Connection,
    sidecar: Connection,
    server: StripeServer,
    make_organization: MakeOrganization,
) -> Books:
    server.forget()
    server.put(*(fixtures.meter(f"mtr_{meter}", event_name=meter) for meter in METERS))
    made = Books(
        shared_database, superuser, sidecar, server, make_organization(shared_database, roles=("owner", "billing"))
    )
    link(superuser, made.id)
    return made


def test_what_was_reported_and_arrived_is_in_step(books: Books) -> None:
    books.use(12)
    books.report()
    assert books.usage() == (12, 12, 0, "in step")
    result = books.command()
    assert result.exit_code == 0
    assert "in step" in result.output
    assert "1 billing period reconciled; nothing drifts." in result.output


def test_what_only_waits_is_no_drift(books: Books) -> None:
    books.use(12)
    assert books.usage() == (12, 0, 0, "not reported yet (12)")
    books.sidecar.execute("select stripe.build_reports(false, 100, %s, true)", [books.id])
    assert books.usage() == (12, 0, 0, "not sent yet (12)")
    ingest(books.sidecar, [event(f"{books.id}-tail", quantity=3)], books.id)  # not rolled up
    assert books.usage() == (15, 0, 0, "not sent yet (12); not reported yet (3)")


def test_usage_that_nobody_makes_reports_of_is_found(books: Books) -> None:
    books.use(12)
    books.superuser.execute("delete from stripe.report_queue where organization_id = %s", [books.id])
    books.superuser.execute(
        "update stripe.customers set linked_at = now() - interval '1 day' where organization_id = %s", [books.id]
    )
    books.superuser.execute("update stripe.meters set created_at = now() - interval '1 day'")
    assert books.usage() == (12, 0, -12, "no report was made of it (12): does a sidecar run?")


def test_an_event_that_stripe_lost_is_found(books: Books) -> None:
    books.use(12)
    books.report()
    (report,) = reports(books.superuser, books.id)
    books.stripe.remove("billing.meter_event", report["identifier"])
    assert books.usage() == (12, 0, 0, "not arrived at Stripe yet (12): its sums lag behind")
    books.forget_lag()
    assert books.usage() == (
        12,
        0,
        -12,
        "lost at Stripe (12): it has acknowledged them, and does not count them",
    )


def test_what_somebody_else_has_sent_is_found(books: Books) -> None:
    books.use(12)
    books.report()
    answer = httpx.post(
        f"{books.stripe.url}/v1/billing/meter_events",
        data={
            "event_name": METER,
            "payload[stripe_customer_id]": books.customer,
            "payload[value]": "5",
        },
        auth=(books.stripe.key, ""),
        trust_env=False,
    )
    assert answer.is_success
    assert books.usage() == (12, 17, 5, "sent by somebody else (5): Stripe has more than we sent")


def test_what_stripe_rejects_is_found_and_gone_once_it_is_sent_again(books: Books) -> None:
    books.use(12)
    books.stripe.fail(path="/v1/billing/meter_events", kind="status", status=400, code="resource_missing")
    books.report()
    ours, theirs, drift, cause = books.usage()
    assert (ours, theirs, drift) == (12, 0, -12)
    assert cause.startswith("rejected by Stripe (12): ")
    books.superuser.execute("select stripe.resend_reports(%s, '{rejected}')", [books.id])
    books.report()
    assert books.usage() == (12, 12, 0, "in step")


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_nobody_knows_the_answer_of(books: Books, when: str) -> None:
    books.use(12)
    books.stripe.fail(path="/v1/billing/meter_events", kind="close", when=when, times=None)
    books.report()
    books.stripe.mend()
    assert books.usage()[2] == 0  # it is sent again
    books.superuser.execute(
        "update stripe.meter_event_reports set first_sent_at = now() - interval '1 day', next_attempt_at = now(), "
        "claimed_until = null where organization_id = %s",
        [books.id],
    )
    books.sidecar.execute("select stripe.tend_reports(false, false)")
    if when == "before":
        assert books.usage() == (12, 0, -12, "uncertain (12): nobody knows whether Stripe has it")
    else:
        assert books.usage() == (12, 12, 0, "uncertain reports arrived after all (12)")


def test_a_fraction_that_is_carried_is_no_drift(books: Books) -> None:
    books.use(10, name="t")
    books.report()
    row = books.found()["t.thirds"]
    assert (number(row["ours"]), number(row["theirs"]), number(row["drift"])) == (Decimal("3.333333"), 3, 0)
    assert row["cause"] == "a fraction is carried (0.333333)"


def test_what_is_taken_back_is_no_drift_on_its_way(books: Books) -> None:
    books.use(12)
    books.report()
    books.superuser.execute("update stripe.meter_event_reports set bucket_start = bucket_start")
    books.sidecar.execute("select metering.void_event(%s, %s)", [books.id, f"{books.id}-0"])
    roll_up_all(books.sidecar)
    books.sidecar.execute("select stripe.build_reports(false, 100, %s, true)", [books.id])
    assert books.usage() == (0, 12, 0, "about to be taken back (12)")
    books.report()
    assert books.usage() == (0, 0, 0, "in step")


def test_a_meter_that_stripe_does_not_have_is_named(books: Books) -> None:
    books.use(4, name="e")
    row = books.found()["t.elsewhere"]
    assert (number(row["ours"]), row["theirs"], number(row["drift"])) == (4, None, -4)
    assert row["cause"] == "no meter at Stripe (4): see goldleaves stripe setup"


def test_an_organization_without_a_customer_is_named(books: Books) -> None:
    books.superuser.execute("delete from stripe.customers where organization_id = %s", [books.id])
    books.use(12)
    assert books.usage() == (12, None, -12, "no customer at Stripe is linked (12): see goldleaves stripe link")


def test_reports_that_were_sent_under_a_later_time_count_for_their_own_period(books: Books) -> None:
    """Stripe takes nothing that is older than 35 days: it is told of it as of a later time."""
    books.superuser.execute("alter table billing.billing_periods disable trigger all")
    books.use(5, at=moment(1, days=3))
    books.use(12)
    books.sidecar.execute("select stripe.build_reports(false, 100, %s, true)", [books.id])
    books.superuser.execute(
        "update stripe.meter_event_reports set happened_at = date_trunc('second', now()) "
        "where organization_id = %s and period_start < %s",
        [books.id, moment()],
    )
    books.report()
    assert {one["timestamp"] >= moment().timestamp() for one in books.stripe.all("billing.meter_event")} == {True}
    assert books.usage() == (12, 12, 0, "in step")
    assert books.usage("--period", str(month(1))) == (5, 5, 0, "in step")


def test_stripe_that_has_too_much_to_do_is_asked_again(books: Books) -> None:
    books.use(12)
    books.report()
    books.stripe.fail(path="/v1/billing/meters", kind="status", status=429, retry_after=0, times=3)
    assert books.usage() == (12, 12, 0, "in step")


def test_stripe_that_is_away_is_said(books: Books) -> None:
    books.use(12)
    books.report()
    assert books.usage()[3] == "in step"
    books.stripe.fail(path="/v1/", kind="status", status=500, times=None)
    result = books.command()
    assert result.exit_code == 1
    assert result.output.startswith("Stripe: ")
    books.stripe.mend()
    kept = books.superuser.execute(
        "select cause from stripe.reconciliations where organization_id = %s", [books.id]
    ).fetchall()
    assert kept == [("in step",)]


def test_a_customer_that_stripe_does_not_know_is_told(books: Books) -> None:
    books.use(12)
    books.report()
    books.stripe.fail(
        path=f"/v1/billing/meters/mtr_{METER}/", kind="status", status=404, code="resource_missing", times=None
    )
    ours, theirs, drift, cause = books.usage()
    assert (ours, theirs, drift) == (12, None, 0)
    assert cause.startswith("Stripe does not say what it has: ")


# Invoices


def put_invoice(books: Books, *lines: Json, status: str = "open", ago: int = 0) -> None:
    created = int(datetime.now(UTC).timestamp()) - ago
    books.stripe.put(fixtures.invoice("in_1", customer=books.customer, status=status, lines=lines, created=created))


def metered_line(books: Books, quantity: int, amount: int, id: str = "il_1") -> Json:
    price = fixtures.price("price_metered", meter=f"mtr_{METER}", unit_amount=25)
    books.stripe.put(price)
    start, end = int(moment().timestamp()), int(moment(-1).timestamp())
    return fixtures.invoice_line(
        id, invoice="in_1", price=price, quantity=quantity, amount=amount, start=start, end=end, subscription="sub_1"
    )


def test_a_line_of_usage_is_compared_with_what_was_reported(books: Books) -> None:
    books.use(12)
    books.report()
    put_invoice(books, metered_line(books, 12, 300))
    row = books.found()[f"in_1 {METER}"]
    assert (number(row["ours"]), number(row["theirs"]), row["cause"]) == (12, 12, "in step")

    put_invoice(books, metered_line(books, 7, 175), metered_line(books, 3, 75, "il_2"))  # tiers are lines
    row = books.found()[f"in_1 {METER}"]
    assert (number(row["drift"]), row["cause"]) == (-2, "not on the invoice (2), and reported before")

    put_invoice(books, metered_line(books, 15, 375))
    row = books.found()[f"in_1 {METER}"]
    assert (number(row["drift"]), row["cause"]) == (3, "on the invoice, and not reported by us (3)")

    put_invoice(books, metered_line(books, 7, 175), status="draft")
    row = books.found()[f"in_1 {METER}"]
    assert (number(row["drift"]), number(row["explained"])) == (0, 5)


def test_an_invoice_may_have_a_meter_for_several_times(books: Books) -> None:
    """As where a price of it was changed in the middle of the month."""
    books.use(12)
    books.report()
    start, end = int(moment().timestamp()), int(moment(-1).timestamp())
    line = metered_line(books, 12, 300)
    put_invoice(
        books,
        line | {"id": "il_1", "quantity": 0, "amount": 0, "period": {"start": start, "end": start + 3}},
        line | {"id": "il_2", "period": {"start": start + 3, "end": end}},
    )
    found = {subject: row for subject, row in books.found().items() if subject.startswith("in_1 ")}
    assert [(number(row["theirs"]), row["cause"]) for row in found.values()] == [(0, "in step"), (12, "in step")]


@pytest.mark.parametrize(
    ("begun", "trial", "renewed", "is_found"),
    [(60, None, 0, True), (60, None, -3, False), (60, 0, 0, False), (0, None, 0, False)],
    ids=["billed", "not billed yet", "in its trial", "before it began"],
)
def test_usage_that_stripe_has_no_price_for_is_found(
    books: Books, begun: int, trial: int | None, renewed: int, is_found: bool
) -> None:
    """It has all of it, and no invoice has a line of it: who did not put a metered price on the subscription."""

    def ago(days: float) -> datetime:
        return moment(1) - timedelta(days=days)

    books.superuser.execute(
        """
        insert into stripe.subscriptions (
          organization_id, id, customer_id, subscription_id, status, current_period_start, trial_end, is_live, facts,
          latest_event_id, latest_event_at
        )
        values (
          %s, %s, %s, gen_random_uuid(), 'active', %s, %s, false, jsonb_build_object('start_date', %s), 'evt', now()
        )
        """,
        [
            books.id,
            f"sub_{books.id.hex}",
            books.customer,
            ago(renewed) if renewed >= 0 else datetime.now(UTC),
            None if trial is None else ago(trial),
            int(ago(begun).timestamp()),
        ],
    )
    books.use(12, at=moment(2, days=10))
    books.report()
    # As it is sent in time.
    books.superuser.execute(
        "update stripe.meter_event_reports set happened_at = %s where organization_id = %s",
        [moment(2, days=10, hours=1), books.id],
    )
    subject = f"no invoice {METER}"
    row = books.found("--period", str(month(2))).get(subject)
    assert (row is not None) == is_found
    if row is not None:
        assert (number(row["drift"]), row["cause"]) == (
            -12,
            "on no invoice of Stripe's: the subscription there has no price of this meter",
        )
    start, end = int(moment(2, days=-5).timestamp()), int(moment(1, days=-5).timestamp())
    line = metered_line(books, 12, 300) | {"period": {"start": start, "end": end}}
    put_invoice(books, line, ago=int((datetime.now(UTC) - moment(1)).total_seconds()))
    assert subject not in books.found("--period", str(month(2)))


def test_usage_that_was_reported_after_the_invoice_is_named(books: Books) -> None:
    books.use(12)
    put_invoice(books, metered_line(books, 0, 0), ago=60)
    books.report()
    row = books.found()[f"in_1 {METER}"]
    assert (number(row["drift"]), row["cause"]) == (-12, "not on the invoice (12): reported after it was finalized")


def test_a_fee_is_compared_with_the_catalog(books: Books) -> None:
    plan = f"plan-{books.id.hex[:8]}"
    books.superuser.execute("insert into billing.plans (code, name, is_public) values (%s, 'x', false)", [plan])
    books.superuser.execute(
        "insert into billing.prices (plan_code, currency, effective_from, unit_amount_cents, model) "
        "values (%s, 'usd', %s, 4900, 'flat')",
        [plan, moment(1)],
    )
    books.superuser.execute("insert into stripe.plan_prices (price_id, plan_code) values (%s, %s)", [plan, plan])
    books.use(1)
    start, end = int(moment().timestamp()), int(moment(-1).timestamp())
    for amount, drift, cause in (
        (4900, 0, "in step"),
        (4500, -400, f"the price differs: {plan} costs 4900 usd here"),
    ):
        price = fixtures.price(plan, unit_amount=amount)
        books.stripe.put(price)
        put_invoice(books, fixtures.invoice_line("il_1", price=price, amount=amount, start=start, end=end))
        row = books.found()["in_1 il_1"]
        assert (number(row["drift"]), row["cause"]) == (drift, cause)

    other = fixtures.price("price_other", unit_amount=100)
    books.stripe.put(other)
    put_invoice(books, fixtures.invoice_line("il_1", price=other, amount=100, start=start, end=end))
    row = books.found()["in_1 il_1"]
    assert (number(row["drift"]), row["cause"]) == (0, "price price_other is no plan of ours")


def test_a_fee_that_the_catalog_leaves_to_stripe_is_no_drift(books: Books) -> None:
    """As of the plans that there are from the start."""
    books.superuser.execute(
        "insert into stripe.plan_prices (price_id, plan_code) values (%s, 'pro')", [f"price_{books.id.hex}"]
    )
    price = fixtures.price(f"price_{books.id.hex}", unit_amount=4900)
    books.stripe.put(price)
    books.use(1)
    start, end = int(moment().timestamp()), int(moment(-1).timestamp())
    put_invoice(books, fixtures.invoice_line("il_1", price=price, amount=4900, start=start, end=end))
    row = books.found()["in_1 il_1"]
    assert (number(row["drift"]), row["cause"]) == (0, "plan pro has no fee here")


def test_lines_of_usage_are_compared_with_the_statement(books: Books) -> None:
    books.use(12, at=moment(1, days=3))
    books.report()
    finalize(books.superuser, books.id, month(1))
    price = fixtures.price("price_metered", meter=f"mtr_{METER}", unit_amount=25)
    books.stripe.put(price)
    start, end = int(moment(1).timestamp()), int(moment().timestamp())
    for amount, drift, cause in (
        (300, 0, "in step"),
        (360, 60, "the price differs: the statement has 300 usd"),
    ):
        put_invoice(books, fixtures.invoice_line("il_1", price=price, quantity=12, amount=amount, start=start, end=end))
        row = books.found("--period", str(month(1)))[f"in_1 {METER} amount"]
        assert (number(row["drift"]), row["cause"]) == (drift, cause)


def test_what_no_line_could_have_is_no_drift_of_its_amount(books: Books) -> None:
    """A fraction is on our statement, and is reported with the next month; how much there is has a row of its own."""
    books.use(12.5, at=moment(1, days=3))
    books.report()
    finalize(books.superuser, books.id, month(1))
    price = fixtures.price("price_metered", meter=f"mtr_{METER}", unit_amount=25)
    books.stripe.put(price)
    start, end = int(moment(1).timestamp()), int(moment().timestamp())
    for amount, drift, cause in (
        (300, 0, "the quantity differs: the statement has 12.5, and 313 usd"),
        (330, 30, "the price differs: 12 cost 300 usd here"),
    ):
        put_invoice(books, fixtures.invoice_line("il_1", price=price, quantity=12, amount=amount, start=start, end=end))
        found = books.found("--period", str(month(1)))
        assert number(found[f"in_1 {METER}"]["drift"]) == 0
        row = found[f"in_1 {METER} amount"]
        assert (number(row["drift"]), row["cause"]) == (drift, cause)


def test_amounts_are_looked_for_among_stripes_items(books: Books) -> None:
    books.superuser.execute(
        "update billing.billing_terms set invoice_mode = 'stripe_items' where organization_id = %s", [books.id]
    )
    books.use(12, at=moment(1, days=3))
    finalize(books.superuser, books.id, month(1))

    def found() -> tuple[int, int | None, int, str]:
        (row,) = books.found("--period", str(month(1))).values()
        theirs = row["theirs"]
        return int(row["ours"]), None if theirs is None else int(theirs), int(row["drift"]), row["cause"]

    assert found() == (300, None, 0, "not sent yet")
    books.send_items()
    assert found() == (300, 300, 0, "in step")
    (item,) = books.stripe.all("invoiceitem")
    books.stripe.put(item | {"amount": 250})
    assert found() == (300, 250, -50, "the amount differs: somebody has changed it at Stripe")
    books.stripe.remove("invoiceitem", item["id"])
    assert found() == (300, None, -300, "lost at Stripe: somebody has deleted it there")
    # Stripe has it, and nobody has heard of it: it is found by what its metadata says.
    books.stripe.put(item)
    books.superuser.execute(
        "update stripe.invoice_items set status = 'uncertain', stripe_id = null where organization_id = %s", [books.id]
    )
    assert found() == (300, 300, 0, "Stripe has it after all")
    books.stripe.put(item | {"id": "ii_again"})
    assert found() == (300, 600, 300, "Stripe has it 2 times: delete what is too much there")


def test_an_amount_on_an_invoice_that_was_voided_drifts(books: Books) -> None:
    """Nobody pays it, until somebody makes the item once more."""
    books.superuser.execute(
        "update billing.billing_terms set invoice_mode = 'stripe_items' where organization_id = %s", [books.id]
    )
    books.use(12, at=moment(1, days=3))
    finalize(books.superuser, books.id, month(1))
    books.send_items()
    (item,) = books.stripe.all("invoiceitem")
    books.stripe.put(item | {"invoice": "in_void"})
    made = fixtures.invoice("in_void", customer=books.customer, status="void", created=int(moment().timestamp()))
    told = fixtures.event("invoice.voided", made, created=int(moment().timestamp()))
    books.superuser.execute("select stripe.receive_events(%s, false)", [[json.dumps(told)]])
    (row,) = books.found("--period", str(month(1))).values()
    assert (row["drift"], row["cause"]) == ("-300", "its invoice was voided at Stripe")
    books.stripe.put(item | {"id": "ii_again", "invoice": "in_next"})
    (row,) = books.found("--period", str(month(1))).values()
    assert (row["drift"], row["cause"]) == ("0", "in step")


def test_an_amount_of_another_currency_drifts(books: Books) -> None:
    """As many of them are another sum of money."""
    books.superuser.execute(
        "update billing.billing_terms set invoice_mode = 'stripe_items' where organization_id = %s", [books.id]
    )
    books.use(12, at=moment(1, days=3))
    finalize(books.superuser, books.id, month(1))
    books.send_items()
    (item,) = books.stripe.all("invoiceitem")
    books.stripe.put(item | {"currency": "eur"})
    (row,) = books.found("--period", str(month(1))).values()
    assert (row["drift"], row["cause"]) == ("-300", "the currency differs: eur")


def test_amounts_that_stripe_refuses_are_named(books: Books) -> None:
    books.superuser.execute(
        "update billing.billing_terms set invoice_mode = 'stripe_items' where organization_id = %s", [books.id]
    )
    books.use(12, at=moment(1, days=3))
    finalize(books.superuser, books.id, month(1))
    books.stripe.fail(path="/v1/invoiceitems", method="POST", kind="status", status=400)
    books.send_items()
    (row,) = books.found("--period", str(month(1))).values()
    assert row["drift"] == "-300"
    assert row["cause"].startswith("rejected by Stripe: ")


# By itself


def test_the_sidecar_tells_of_drift_once_until_it_is_gone(books: Books) -> None:
    books.superuser.execute("update stripe.reconciled_periods set checked_at = now()")  # of other tests

    def again() -> Reconciling:
        books.superuser.execute(
            "update stripe.reconciled_periods set checked_at = now() - interval '25 hours' where organization_id = %s",
            [books.id],
        )
        return books.step()

    books.use(12)
    books.stripe.fail(path="/v1/billing/meter_events", kind="status", status=400)
    books.report()
    reconciling = books.step()
    (told,) = books.told()
    assert (told["subject"], told["drift"], told["kind"]) == (METER, -12, "usage")
    assert told["organization_id"] == str(books.id)
    assert told["cause"].startswith("rejected by Stripe (12)")
    samples = [sample for family in reconciling.collect() for sample in family.samples]
    assert max(one.value for one in samples if one.name == "goldleaves_stripe_drift_organizations") >= 1
    assert max(one.value for one in samples if one.name == "goldleaves_stripe_drift_units") >= 12
    again()
    assert len(books.told()) == 1

    books.superuser.execute("select stripe.resend_reports(%s, '{rejected}')", [books.id])
    books.report()
    again()
    assert books.usage()[2] == 0
    assert len(books.told()) == 1
    books.stripe.remove("billing.meter_event", reports(books.superuser, books.id)[-1]["identifier"])
    books.forget_lag()
    again()
    assert [one["cause"][:14] for one in books.told()][1:] == ["lost at Stripe"]


def test_a_period_is_reconciled_once_a_day_by_one_of_them(books: Books, shared_database: Database) -> None:
    books.use(1)
    claim = "select organization_id from stripe.claim_reconciliations(1000, '1 minute')"
    with shared_database.connect("sidecar") as other:
        assert (books.id,) in books.sidecar.execute(claim).fetchall()
        assert (books.id,) not in other.execute(claim).fetchall()
        books.superuser.execute("update stripe.reconciled_periods set claimed_until = '-infinity'")
        assert (books.id,) in other.execute(claim).fetchall()
        books.usage()  # whoever does it
        assert (books.id,) not in other.execute(claim).fetchall()


def test_periods_that_we_invoice_ourselves_are_left_alone(books: Books) -> None:
    books.superuser.execute(
        "update billing.billing_terms set invoice_mode = 'local' where organization_id = %s", [books.id]
    )
    books.use(12)
    result = books.command()
    assert result.exit_code == 1
    assert "in which Stripe's invoice counts" in result.output


def test_what_belongs_to_no_organization_is_nobodys_to_pay(books: Books) -> None:
    platform = value(books.superuser, "select audit.platform()")
    books.superuser.execute("update billing.defaults set invoice_mode = 'stripe_meters'")
    books.superuser.execute("select billing.ensure_periods(%s, now(), now())", [platform])
    books.superuser.execute("update billing.defaults set invoice_mode = 'local'")
    assert value(
        books.superuser, "select invoice_mode from billing.billing_periods where organization_id = %s", platform
    ) == ("stripe_meters")
    claimed = books.sidecar.execute("select organization_id from stripe.claim_reconciliations(1000, '0')").fetchall()
    listed = books.superuser.execute("select organization_id from stripe.periods_at_stripe(null, null, null, 1000)")
    assert (platform,) not in [*claimed, *listed.fetchall()]


def test_staff_sees_what_was_found(books: Books, api: Connection) -> None:
    books.use(12)
    books.usage()
    query = "select subject, ours, drift, cause from api.stripe_reconciliations where organization_id = %s"
    with request(api, Caller("platform_admin", "staff", path="/stripe_reconciliations")):
        assert run(api, query, [books.id]).fetchall() == [(METER, 12, 0, "not reported yet (12)")]
