"""Whose invoice counts is said for the platform and for an organization, and fixed for a period when that is made. Over
all modes, and turns from one to another, each event is paid for once: on our invoice, by an item on Stripe's, or by
usage that Stripe rates itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.ledgers import staff
from tests.meters import roll_up_all
from tests.sql_requests import Caller, Connection, request
from tests.statements import agree, arrive, invoices, link, rows, use
from tests.usage import event, finalize, ingest, moment, month, value

MODES = ("local", "stripe_meters", "stripe_items")
CENTS = 25


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


def modes_of_periods(superuser: Connection, organization: UUID) -> list[str]:
    found = rows(
        superuser,
        "select invoice_mode from billing.billing_periods where organization_id = %s order by period_start",
        organization,
    )
    return [row["invoice_mode"] for row in found]


def make_period(superuser: Connection, organization: UUID, months_ago: int) -> None:
    at = moment(months_ago)
    superuser.execute("select billing.ensure_periods(%s, %s, %s)", [organization, at, at])


def test_a_period_has_the_mode_of_when_it_was_made(superuser: Connection, organization: Organization) -> None:
    for months_ago, mode in ((3, None), (2, "stripe_meters"), (1, "stripe_items"), (0, "local")):
        agree(superuser, organization.id, mode)
        make_period(superuser, organization.id, months_ago)
    agree(superuser, organization.id, "stripe_meters")
    make_period(superuser, organization.id, 1)
    assert modes_of_periods(superuser, organization.id) == ["local", "stripe_meters", "stripe_items", "local"]


def test_without_terms_it_is_that_of_the_platform(
    superuser: Connection, organization: Organization, make_organization: MakeOrganization, shared_database: Database
) -> None:
    agreed = make_organization(shared_database)
    agree(superuser, agreed.id, "local")
    with superuser.transaction(force_rollback=True):
        superuser.execute("update billing.defaults set invoice_mode = 'stripe_items'")
        for one in (organization, agreed):
            make_period(superuser, one.id, 0)
        assert modes_of_periods(superuser, organization.id) == ["stripe_items"]
        assert modes_of_periods(superuser, agreed.id) == ["local"]


def test_staff_says_it_and_goes_back_to_the_platforms(api: Connection, organization: Organization) -> None:
    with staff(api, organization) as provider:
        assert provider.call("set_billing_terms", tax_percent=19)["invoice_mode"] is None
        assert provider.call("set_billing_terms", invoice_mode="stripe_items")["invoice_mode"] == "stripe_items"
        kept = provider.call("set_billing_terms", payment_days=30)
        assert (kept["invoice_mode"], kept["tax_percent"], kept["payment_days"]) == ("stripe_items", 19, 30)
        gone = provider.call("set_billing_terms", invoice_mode="default")
        assert (gone["invoice_mode"], gone["tax_percent"]) == (None, 19)
        said = provider.refused("INVALID_BILLING_TERMS", "set_billing_terms", invoice_mode="stripe")
        assert "local, stripe_meters, stripe_items or default" in said


@pytest.mark.parametrize("role", ["owner", "billing"])
def test_those_who_pay_see_it_and_do_not_say_it(
    superuser: Connection, api: Connection, organization: Organization, role: str
) -> None:
    agree(superuser, organization.id, "stripe_items")
    make_period(superuser, organization.id, 0)
    with request(api, Caller("member", organization[role].subject)) as conn:
        assert rows(conn, "select invoice_mode from api.billing_terms") == [{"invoice_mode": "stripe_items"}]
        assert rows(conn, "select invoice_mode from api.billing_periods") == [{"invoice_mode": "stripe_items"}]
        with pytest.raises(psycopg.Error, match="ROLE_REQUIRED: "):
            conn.execute("select api.set_billing_terms(invoice_mode => 'local')")


def test_nobody_changes_it_of_a_period_that_is_there(superuser: Connection, organization: Organization) -> None:
    """What of a period was reported to Stripe must not be billed here as well."""
    make_period(superuser, organization.id, 0)
    with superuser.transaction(force_rollback=True), pytest.raises(psycopg.errors.InsufficientPrivilege):
        superuser.execute("set local role goldleaves_kernel")
        superuser.execute(
            "update billing.billing_periods set invoice_mode = 'stripe_meters' where organization_id = %s",
            [organization.id],
        )


@dataclass(frozen=True)
class MonthOfUse:
    """Requests in time, and of earlier months that came in this one; how many of the month before were taken back."""

    mode: str
    requests: int
    late: int
    voided: int


MONTHS = st.lists(
    st.builds(MonthOfUse, st.sampled_from(MODES), st.integers(0, 4), st.integers(0, 3), st.integers(0, 4)),
    min_size=3,
    max_size=3,
)


class Year:
    """Three months that are closed one after the other, each in its mode, by all who bill."""

    def __init__(self, superuser: Connection, sidecar: Connection, organization: UUID) -> None:
        self.superuser = superuser
        self.sidecar = sidecar
        self.organization = organization
        self.counted = 0

    def live(self, months: Sequence[MonthOfUse]) -> None:
        agree(self.superuser, self.organization, months[0].mode)
        for number, one in enumerate(months):
            months_ago = len(months) - number
            make_period(self.superuser, self.organization, months_ago)
            use(self.superuser, self.organization, one.requests, months_ago)
            self.counted += one.requests
            if number:
                self._arrive_late(one, months_ago)
                self._take_back(one.voided, months[number - 1].requests, months_ago)
            self._report()
            following = months[number + 1].mode if number + 1 < len(months) else "local"
            agree(self.superuser, self.organization, following)  # of the period that closing makes
            finalize(self.superuser, self.organization, month(months_ago))
            self._report()

    def _arrive_late(self, one: MonthOfUse, months_ago: int) -> None:
        before = moment(months_ago + 1, days=5)
        late = [event(f"late-{months_ago}-{number}", before) for number in range(one.late)]
        if late:
            assert ingest(self.superuser, late, self.organization, late="adjust").accepted == one.late
            arrive(self.superuser, self.organization, months_ago)
            self.counted += one.late

    def _take_back(self, most: int, there: int, months_ago: int) -> None:
        for number in range(min(most, there)):
            key = f"{moment(months_ago + 1, days=3):%Y%m%d%H%M%S}-{number}"
            self.superuser.execute("select metering.void_event(%s, %s, 'api', 'adjust')", [self.organization, key])
            arrive(self.superuser, self.organization, months_ago)
            self.counted -= 1

    def _report(self) -> None:
        """What Stripe is told of usage, and what it takes."""
        roll_up_all(self.sidecar)
        self.sidecar.execute("select stripe.build_reports(false, 100, %s, true)", [self.organization])
        self.superuser.execute(
            """
            update stripe.meter_event_reports set status = 'acknowledged', first_sent_at = now() - interval '2 days',
              acknowledged_at = now() - interval '2 days', happened_at = bucket_start
            where organization_id = %s and status = 'pending'
            """,
            [self.organization],
        )

    def billed(self) -> dict[str, Decimal]:
        """In cents, by who bills it."""
        ours = sum(
            (made["total_cents"] for made in invoices(self.superuser, self.organization) if made["kind"] == "invoice"),
            Decimal(),
        )
        amounts = "select coalesce(sum(amount_cents), 0) from stripe.invoice_items where organization_id = %s"
        told = """
            select coalesce((
              select sum(quantity) from stripe.meter_event_reports
              where organization_id = %(org)s and status <> 'canceled'
            ), 0) + coalesce((select sum(carried) from stripe.report_periods where organization_id = %(org)s), 0)
            """
        found = self.superuser.execute(told.encode(), {"org": self.organization}).fetchone()
        assert found
        return {"local": ours, "items": value(self.superuser, amounts, self.organization), "meters": found[0] * CENTS}


@pytest.fixture(scope="module")
def _at_stripe(superuser: Connection) -> None:
    superuser.execute(
        "insert into stripe.meters (meter_code, id, event_name) values ('api.request', 'mtr_modes', 'api.request')"
    )


@pytest.mark.usefixtures("_at_stripe")
@hypothesis_settings(max_examples=25, deadline=None)
@given(months=MONTHS)
def test_each_event_is_paid_for_once(
    superuser: Connection,
    sidecar: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
    months: list[MonthOfUse],
) -> None:
    made = make_organization(shared_database, roles=("owner",)).id
    link(superuser, made)
    year = Year(superuser, sidecar, made)
    year.live(months)
    billed = year.billed()
    assert sum(billed.values()) == year.counted * CENTS, (billed, year.counted)
    # And by nobody who does not bill in any of the months.
    for mode, who in (("local", "local"), ("stripe_items", "items"), ("stripe_meters", "meters")):
        if mode not in {one.mode for one in months} and not (who == "items" and billed["items"] < 0):
            assert billed[who] == 0, (billed, months)
    for invoice in invoices(superuser, made):
        assert rows(superuser, "select * from billing.verify_invoice(%s)", invoice["id"]) == []
