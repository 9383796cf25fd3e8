"""A preview is the invoice that would be issued if nothing more came, field by field, but for what issuing gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization
from tests.sql_requests import Caller, enter, request
from tests.usage import Connection, event, finalize, ingest, moment, month, value

# What only issuing gives: a number, dates, and the proof.
OF_ISSUING = {"id", "number", "status", "issued_at", "issue_date", "due_at", "due_date", "digest"}
TIERS = [{"up_to": 10, "unit_amount_cents": 3, "flat_amount_cents": 100}, {"up_to": None, "unit_amount_cents": 1.25}]
PRICES: list[dict[str, object]] = [
    {"meter_code": "p.tiers", "model": "graduated", "tiers": json.dumps(TIERS)},
    {"meter_code": "p.tiers", "unit_amount_cents": 0.3, "dimension": "model", "dimension_value": "large"},
    {
        "meter_code": "p.packages",
        "model": "package",
        "unit_amount_cents": 40,
        "package_size": 7,
        "included_quantity": 5,
    },
    {"meter_code": "p.least", "unit_amount_cents": 1, "minimum_cents": 999},
    {"meter_code": None, "plan_code": "starter", "model": "flat", "unit_amount_cents": 4901},
]


@pytest.fixture(scope="module")
def priced(superuser: Connection) -> None:
    """Prices that were always there: they are made for times to come alone, so as superuser, past the guards."""
    for code in ("p.tiers", "p.packages", "p.least"):
        superuser.execute(
            """
            insert into metering.meters (code, event_name, aggregation, unit, description, group_by)
            values (%s, %s, 'sum', 'u', 'd', '{model}')
            """,
            [code, code],
        )
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")
        for price in PRICES:
            row = json.dumps({"currency": "usd", "effective_from": "2000-01-01Z", **price})
            names = ", ".join([*price, "currency", "effective_from"])
            superuser.execute(
                f"insert into billing.prices ({names}) select {names} from jsonb_populate_record("
                "null::billing.prices, %s::jsonb || jsonb_build_object('tiers', (%s::jsonb ->> 'tiers')::jsonb))",
                [row, row],
            )


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization, priced: None) -> Organization:
    return make_organization(shared_database, timezone="Asia/Kolkata")


def use(superuser: Connection, organization: UUID, months_ago: int, *days: float, key: str = "") -> None:
    events = [
        event(f"{key}{code}{day}{model}", moment(months_ago, days=day), name=code, quantity=7.3, dimensions=dimensions)
        for day in days
        for code in ("p.tiers", "p.packages", "p.least", "nobody.counts.it")
        for model, dimensions in (("", {}), ("large", {"model": "large"}))
    ]
    assert ingest(superuser, events, organization, late="adjust").rejected == ()


def preview(api: Connection, caller: Caller, months_ago: int = 1, entity: str | None = None) -> dict[str, Any]:
    with request(api, caller):
        found: dict[str, Any] = value(api, "select api.preview_invoice(%s, %s)", month(months_ago), entity)
    return found


def document(api: Connection, caller: Caller, invoice: UUID) -> dict[str, Any]:
    with request(api, caller):
        found: dict[str, Any] = value(api, "select api.invoice_document(%s)", str(invoice))
    return found


def owner(organization: Organization, role: str = "owner") -> Caller:
    return Caller("member", organization[role].subject, str(organization.id))


def without(fields: set[str], document: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in document.items() if name not in fields}


def compare(previewed: dict[str, Any], issued: dict[str, Any]) -> None:
    assert previewed.keys() == issued.keys()
    assert without(OF_ISSUING, previewed) == without(OF_ISSUING, issued)
    assert previewed["status"] == "draft"
    assert {previewed[name] for name in OF_ISSUING - {"status"}} == {None}
    assert None not in [issued[name] for name in OF_ISSUING]


@pytest.mark.parametrize(("percent", "inclusive"), [(0, False), (19, False), (7.7, True)])
def test_a_preview_equals_the_invoice(
    api: Connection, superuser: Connection, organization: Organization, percent: float, inclusive: bool
) -> None:
    superuser.execute(
        """
        insert into billing.billing_terms (organization_id, tax_name, tax_percent, tax_inclusive)
        values (%s, 'V', %s, %s)
        """,
        [organization.id, percent, inclusive],
    )
    use(superuser, organization.id, 1, 2, 9, 20.5)
    superuser.execute("select metering.roll_up()")
    use(superuser, organization.id, 1, 21)
    previewed = preview(api, owner(organization))
    assert {line["kind"] for line in previewed["lines"]} == {"fee", "usage"}
    issued = document(api, owner(organization), finalize(superuser, organization.id, month(1)).id)
    compare(previewed, issued)
    amounts = [line["amount_cents"] for line in issued["lines"]]
    assert issued["subtotal_cents"] == sum(amounts)
    assert issued["total_cents"] == sum(amounts) + (0 if inclusive else issued["tax_cents"])


def test_a_balance_is_taken_off_both(api: Connection, superuser: Connection, organization: Organization) -> None:
    """Paid, and then credited: what is too much is in hand for the next invoice."""
    use(superuser, organization.id, 2, 5)
    first = finalize(superuser, organization.id, month(2))
    with api.transaction():
        enter(api, Caller("platform_admin", "staff", str(organization.id)))
        api.execute("select api.record_payment(%s, %s, 'bank', 'B-1')", [first.id, first.total_cents])
        api.execute("select api.create_credit_note(%s, 'Was down', reference => 'C-1')", [first.id])
    paid = document(api, owner(organization), first.id)
    assert [note["to_balance_cents"] for note in paid["credit_notes"]] == [first.total_cents]
    assert [payment["amount_cents"] for payment in paid["payments"]] == [first.total_cents]

    use(superuser, organization.id, 1, 6, 7)
    previewed = preview(api, owner(organization))
    assert previewed["balance_applied_cents"] == first.total_cents
    assert previewed["amount_due_cents"] == previewed["total_cents"] - first.total_cents > 0
    compare(previewed, document(api, owner(organization), finalize(superuser, organization.id, month(1)).id))


def test_late_usage_says_where_it_belongs(api: Connection, superuser: Connection, organization: Organization) -> None:
    use(superuser, organization.id, 1, 5)
    first = finalize(superuser, organization.id, month(1))
    use(superuser, organization.id, 1, 6, key="late")
    previewed = preview(api, owner(organization), 0)
    belongs_to = [line["belongs_to"] for line in previewed["adjustments"]]
    assert {(each["invoice_number"], each["start_date"], each["end_date"]) for each in belongs_to} == {
        (first.number, str(month(1)), str(month(0)))
    }
    assert {line["kind"] for line in previewed["lines"]} <= {"fee", "usage"}


def test_both_payers_of_a_conversion_have_one(
    api: Connection, superuser: Connection, shared_database: Database, make_organization: MakeOrganization, priced: None
) -> None:
    converted = make_organization(shared_database, kind="personal", roles=("owner",))
    use(superuser, converted.id, 1, 3)
    superuser.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
        [moment(1, days=11, hours=5), converted.id],
    )
    use(superuser, converted.id, 1, 15)
    caller = owner(converted)
    by_entity = {entity: preview(api, caller, entity=entity) for entity in ("user", "organization")}
    assert preview(api, caller) == by_entity["organization"]
    finalize(superuser, converted.id, month(1))
    for entity, previewed in by_entity.items():
        invoice = value(
            superuser,
            "select id from billing.invoices where organization_id = %s and billing_entity_type = %s",
            converted.id,
            entity,
        )
        compare(previewed, document(api, caller, invoice))


def test_a_preview_changes_nothing_and_is_live(
    api: Connection, superuser: Connection, organization: Organization
) -> None:
    count = "select (select count(*) from billing.billing_periods) + (select count(*) from billing.invoices)"
    before = value(superuser, count)
    use(superuser, organization.id, 0, 0)
    with superuser.transaction(force_rollback=True):
        made = value(superuser, count)
    first = preview(api, owner(organization), 0)
    assert preview(api, owner(organization), 0) == first
    assert value(superuser, count) == made >= before
    use(superuser, organization.id, 0, 0, key="more")
    assert preview(api, owner(organization), 0)["total_cents"] > first["total_cents"]


def test_a_finalized_period_names_its_invoice(
    api: Connection, superuser: Connection, organization: Organization
) -> None:
    issued = finalize(superuser, organization.id, month(1))
    with pytest.raises(psycopg.Error) as refused:
        preview(api, owner(organization))
    assert str(refused.value.diag.message_primary).startswith("BILLING_PERIOD_LOCKED: ")
    assert str(issued.id) in str(refused.value.diag.message_hint)


@pytest.mark.parametrize("role", ROLES)
def test_who_may_read_invoices_may_preview(api: Connection, organization: Organization, role: str) -> None:
    if role in ("owner", "admin", "billing"):
        assert preview(api, owner(organization, role), 0)["status"] == "draft"
        return
    with pytest.raises(psycopg.Error) as refused:
        preview(api, owner(organization, role), 0)
    assert str(refused.value.diag.message_primary).startswith("ROLE_REQUIRED: ")


def test_another_organization_learns_nothing(
    api: Connection,
    superuser: Connection,
    organization: Organization,
    shared_database: Database,
    make_organization: MakeOrganization,
) -> None:
    use(superuser, organization.id, 1, 3)
    invoice = finalize(superuser, organization.id, month(1))
    stranger = make_organization(shared_database)
    said = []
    for invoice_id in (invoice.id, UUID(int=invoice.id.int + 1)):
        with pytest.raises(psycopg.Error) as refused:
            document(api, owner(stranger), invoice_id)
        said.append(str(refused.value.diag.message_primary).replace(str(invoice_id), ""))
    assert said[0] == said[1]
    assert said[0].startswith("INVOICE_NOT_FOUND: ")


@pytest.fixture(autouse=True)
def no_settings_are_left(api: Connection) -> Iterator[None]:
    yield
    assert not value(api, "select nullif(current_setting('app.current_org', true), '')")


def test_the_days_are_those_of_the_organization(
    api: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    east = make_organization(shared_database, timezone="Pacific/Tongatapu", roles=("owner",))
    shown = preview(api, owner(east), 1)["period"]
    assert (shown["start_date"], shown["end_date"]) == (str(month(1)), str(month(0)))
    assert shown["start"] == f"{(moment(1) - timedelta(hours=13)).isoformat()}"
