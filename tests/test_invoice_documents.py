"""Invoices as people take them away: JSON, CSV and a page to print, for those who may read invoices, with the words of
tenants on them that do no harm.
"""

from __future__ import annotations

import csv
import io
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from decimal import Decimal
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.invoices.document import Document
from api.invoices.lines_csv import COLUMNS, lines_csv
from api.invoices.numbers import money, quantity
from api.invoices.page import page
from tests.conftest import MakeOrganization
from tests.harness import ROLES, Organization, RunningStack
from tests.usage import event, finalize, ingest, moment, month

READERS = ("owner", "admin", "billing")
FORMATS = ("", ".csv", ".html")
HOSTILE = '</style><script>alert("1")</script>\' & שלום \u202e 100.00 \U0001f9fe '
INVOICE: dict[str, Any] = {
    "number": "2026-0001",
    "status": "open",
    "issuer": {"legal_name": "Issuer"},
    "billed_to": {"legal_name": "Customer"},
    "period": {"start_date": "2026-01-01", "end_date": "2026-02-01", "timezone": "UTC"},
    "issue_date": "2026-02-01",
    "due_date": "2026-02-15",
    "currency": "usd",
    "minor_units": 2,
    "lines": [],
    "adjustments": [],
    "tax": None,
    **dict.fromkeys(("subtotal_cents", "total_cents", "amount_due_cents", "remaining_cents"), 123456),
    **dict.fromkeys(("balance_applied_cents", "paid_cents", "credited_cents", "written_off_cents"), 0),
    "payments": [],
    "credit_notes": [],
    "digest": "d" * 64,
}
LINE: dict[str, Any] = {
    "line_number": 1,
    "kind": "usage",
    "meter": "m",
    "groups": {},
    "description": "Usage",
    "unit": "u",
    "events": 1,
    "quantity": 1,
    "unit_amount_cents": 123456,
    "price": None,
    "tiers": [],
    "exact_cents": 123456,
    "amount_cents": 123456,
}


def document(**fields: object) -> Document:
    return Document.of_json(json.dumps(INVOICE | fields).encode())


class Page(HTMLParser):
    """Its elements and attributes, and the text that is seen, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.styles: list[str] = []
        self._texts: list[str] = []
        self._inside = ""
        self.feed(html)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._inside = tag

    def handle_data(self, data: str) -> None:
        (self.styles if self._inside == "style" else self._texts).append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


@pytest.fixture(scope="module")
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database, "acme")


@pytest.fixture(scope="module")
def invoice(stack: RunningStack, organization: Organization) -> str:
    with stack.database.connect() as superuser:
        events = [event("1", moment(1), quantity=40), event("2", moment(1), name="doc.upload", quantity=4)]
        ingest(superuser, events, organization.id)
        with stack.client("staff", role="platform_admin", org=organization.slug) as staff:
            terms = {"tax_name": "VAT", "tax_percent": 19, "payment_days": 30}
            assert staff.post("/api/v1/rpc/set_billing_terms", json=terms).status_code == 200
        with stack.client(organization["owner"].subject) as owner:
            profile = {"legal_name": HOSTILE + "x" * 100, "address": f"{HOSTILE}\nSecond line", "tax_id": "=1+1"}
            assert owner.post("/api/v1/rpc/set_billing_profile", json=profile).status_code == 200
        return str(finalize(superuser, organization.id, month(1)).id)


@pytest.fixture
def owner(stack: RunningStack, organization: Organization) -> Iterator[httpx.Client]:
    with stack.client(organization["owner"].subject) as client:
        yield client


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["message"].partition(":")[0]


# Who, and how


@pytest.mark.parametrize("mount", ["/api/billing", "/billing"])
def test_an_invoice_comes_in_three_formats(owner: httpx.Client, invoice: str, mount: str) -> None:
    as_json, as_csv, as_html = (owner.get(f"{mount}/invoices/{invoice}{suffix}") for suffix in FORMATS)
    year = as_json.json()["issue_date"][:4]
    for answer, kind, disposition in (
        (as_json, "application/json", f'inline; filename="invoice-{year}-0001.json"'),
        (as_csv, "text/csv", f'attachment; filename="invoice-{year}-0001.csv"'),
        (as_html, "text/html", f'inline; filename="invoice-{year}-0001.html"'),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert answer.headers["content-disposition"] == disposition
        assert answer.headers["cache-control"] == "private, no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert as_json.json() == owner.get(f"/api/v1/rpc/invoice_document?invoice_id={invoice}").json()
    assert as_json.json()["total_cents"] == 1309  # 44 units for 25, and 19 %
    assert "USD 13.09" in Page(as_html.text).text


def test_previews_come_in_three_formats(owner: httpx.Client) -> None:
    for suffix in FORMATS:
        answer = owner.get(f"/api/billing/preview-invoice{suffix}", params={"period_start": f"{month(0)}"})
        assert answer.status_code == 200, answer.text
        assert f"invoice-preview-{month(0)}" in answer.headers["content-disposition"]
    assert "DRAFT" in Page(answer.text).text
    assert owner.get("/api/billing/preview-invoice").json()["status"] == "draft"


def test_head_answers_without_the_body(owner: httpx.Client, invoice: str) -> None:
    answer = owner.head(f"/api/billing/invoices/{invoice}.html")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/html")


def test_what_the_client_would_accept_changes_nothing(owner: httpx.Client, invoice: str) -> None:
    """It is for PostgREST to read else, which makes text/csv of a document in another way."""
    plain = owner.get(f"/api/billing/invoices/{invoice}").content
    for headers in ({"Accept": "text/csv"}, {"Accept": "text/html"}, {"Range": "0-0"}, {"Prefer": "count=planned"}):
        assert owner.get(f"/api/billing/invoices/{invoice}", headers=headers).content == plain


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("role", ROLES)
def test_those_who_pay_read_them(
    stack: RunningStack, organization: Organization, invoice: str, role: str, suffix: str
) -> None:
    with stack.client(organization[role].subject) as client:
        for path in (f"invoices/{invoice}{suffix}", f"preview-invoice{suffix}"):
            answer = client.get(f"/api/billing/{path}")
            if role in READERS:
                assert answer.status_code == 200, answer.text
            else:
                assert refusal(answer) == (403, "ROLE_REQUIRED")


@pytest.mark.parametrize("suffix", FORMATS)
def test_nobody_else_does(
    stack: RunningStack, organization: Organization, invoice: str, make_organization: MakeOrganization, suffix: str
) -> None:
    path = f"/api/billing/invoices/{invoice}{suffix}"
    assert httpx.get(stack.gateway_url + path, trust_env=False).status_code == 401
    stranger = make_organization(stack.database)
    with stack.client(stranger["owner"].subject) as client:
        assert refusal(client.get(path)) == (404, "INVOICE_NOT_FOUND")
        assert refusal(client.get(path, headers={"X-Organization-ID": organization.slug})) == (403, "NOT_A_MEMBER")
    with stack.client("backend", role="service", org=organization.slug) as client:
        assert client.get(path).status_code == 403
    with stack.client(organization["owner"].subject) as client:
        key = client.post("/api/v1/rpc/create_api_key", json={"name": "k", "scopes": ["usage:read", "data:read"]})
    answer = httpx.get(
        stack.gateway_url + path, headers={"Authorization": f"Bearer {key.json()['key']}"}, trust_env=False
    )
    assert refusal(answer) == (403, "SCOPE_REQUIRED")
    assert "no API key may" in answer.json()["message"]


def test_staff_reads_those_of_the_organization_that_it_names(
    stack: RunningStack, organization: Organization, invoice: str
) -> None:
    with stack.client("staff", role="platform_admin") as staff:
        path = f"/api/billing/invoices/{invoice}.html"
        assert refusal(staff.get(path)) == (400, "ORGANIZATION_REQUIRED")
        assert staff.get(path, headers={"X-Organization-ID": organization.slug}).status_code == 200


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_not_there_is_said_in_the_one_shape_of_errors(owner: httpx.Client, suffix: str) -> None:
    for path, expected in (
        (f"invoices/{uuid4()}{suffix}", (404, "INVOICE_NOT_FOUND")),
        (f"invoices/2026-0001{suffix}", (404, "INVOICE_NOT_FOUND")),
        (f"invoices/%00{suffix}", (404, "ROUTE_NOT_FOUND")),
        (f"invoices/%FF{suffix}", (404, "ROUTE_NOT_FOUND")),
        (f"invoices/a/b{suffix}", (404, "ROUTE_NOT_FOUND")),
        (f"invoices/{uuid4()}{suffix}?invoice_id={uuid4()}", (400, "UNKNOWN_PARAMETER")),
        (f"preview-invoice{suffix}?period=2026-01-01", (400, "UNKNOWN_PARAMETER")),
        (f"preview-invoice{suffix}?period_start=2026-01-01&period_start=2026-02-01", (400, "UNKNOWN_PARAMETER")),
        (f"preview-invoice{suffix}?period_start=1999-01-01", (404, "PERIOD_NOT_FOUND")),
        (f"preview-invoice{suffix}?billing_entity_type=nobody", (404, "BILLING_ENTITY_NOT_FOUND")),
        (f"preview-invoice{suffix}?period_start={month(1)}", (409, "BILLING_PERIOD_LOCKED")),
    ):
        answer = owner.get(f"/api/billing/{path}")
        assert refusal(answer) == expected, path
        assert answer.headers["content-type"].startswith("application/json")
    assert refusal(owner.post("/api/billing/preview-invoice")) == (405, "METHOD_NOT_ALLOWED")
    assert owner.get("/api/billing/preview-invoice?period_start=soon").status_code == 400


def test_an_invoice_of_before_shows_what_it_has(stack: RunningStack, make_organization: MakeOrganization) -> None:
    """Those of the first versions kept neither profiles nor prices, and no due date."""
    old = make_organization(stack.database, name="Old & Co", timezone="Europe/Berlin")
    made = {"org": old.id, "id": uuid4()}
    with stack.database.connect() as superuser:
        superuser.execute(
            """
            insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
            values (%(org)s, '2024-01-01 00:00+01', '2024-02-01 00:00+01', 'Europe/Berlin')
            """,
            made,
        )
        superuser.execute(
            """
            insert into billing.invoices (organization_id, id, number, period_start, period_end, currency, total_cents)
            values (%(org)s, %(id)s, '2024-0001', '2024-01-01 00:00+01', '2024-02-01 00:00+01', 'xts', 50)
            """,
            made,
        )
        superuser.execute(
            """
            insert into billing.invoice_lines (organization_id, invoice_id, line_number, meter_code, description, unit,
              events, quantity, unit_amount_cents, amount_cents)
            values (%(org)s, %(id)s, 1, 'api.request', 'Requests', 'request', 2, 2, 25, 50)
            """,
            made,
        )
    with stack.client(old["owner"].subject) as client:
        as_json, as_csv, as_html = (client.get(f"/api/billing/invoices/{made['id']}{suffix}") for suffix in FORMATS)
    shown = as_json.json()
    expected = {
        "status": "open",
        **dict.fromkeys(("subtotal_cents", "total_cents", "amount_due_cents", "remaining_cents"), 50),
        "billed_to": {"legal_name": "Old & Co"},
        "due_date": None,
        "digest": None,
    }
    assert {name: shown[name] for name in expected} == expected
    assert (shown["period"]["start_date"], shown["period"]["end_date"]) == ("2024-01-01", "2024-02-01")
    assert ",Requests,request,2,2,25,50,0.50," in as_csv.text.splitlines()[1]
    assert "Requests · request 2 0.25 0.50 Total 0.50 Amount due XTS 0.50" in Page(as_html.text).text


# The page


def test_the_page_does_nothing_with_what_tenants_wrote(owner: httpx.Client, invoice: str) -> None:
    answer = owner.get(f"/api/billing/invoices/{invoice}.html")
    read = Page(answer.text)
    assert HOSTILE.strip() in read.text
    assert "</style><script>" not in answer.text
    assert read.tags & {"script", "img", "iframe", "a", "form", "link", "base", "object"} == set()
    assert {name for name in read.attributes if name.startswith("on") or name in ("style", "href", "src")} == set()


def test_its_policy_lets_one_style_sheet_through_and_nothing_else(owner: httpx.Client, invoice: str) -> None:
    answer = owner.get(f"/api/billing/invoices/{invoice}.html")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    [style] = Page(answer.text).styles
    assert policy["style-src"] == f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'"
    assert set(policy) == {"default-src", "style-src", "base-uri", "form-action", "frame-ancestors"}
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize("status", ["draft", "open", "paid", "void", "uncollectible"])
def test_what_became_of_it_is_stamped(status: str) -> None:
    stamps = re.findall(r'class="stamp (\w+)">(\w+)<', page(document(status=status)))
    assert stamps == ([] if status == "open" else [(status, status.upper())])


def test_a_price_in_tiers_shows_how_it_adds_up() -> None:
    tiers = [
        {"from": 0, "to": 10, "quantity": 10, "unit_amount_cents": 0, "amount_cents": 0, "included": True},
        {"from": 10, "to": 100, "quantity": 90, "unit_amount_cents": 1.25, "amount_cents": 112.5},
        {"from": 100, "to": 1100.5, "quantity": 1000.5, "unit_amount_cents": 1, "amount_cents": 1000.5},
    ]
    price = {"model": "graduated", "minimum_cents": 2000}
    text = Page(page(document(lines=[LINE | {"tiers": tiers, "price": price, "exact_cents": 2000}]))).text
    assert "Included 10 0.00" in text
    assert "Above 10, up to 100 90 0.0125 1.125" in text
    assert "Above 100, up to 1,100.5 1,000.5 0.01 10.005" in text
    assert "Minimum charge of 20.00 8.87" in text


def test_what_is_left_to_pay_follows_from_what_stands_above_it() -> None:
    text = Page(
        page(
            document(
                status="open",
                balance_applied_cents=3456,
                amount_due_cents=120000,
                paid_cents=20000,
                credited_cents=9000,
                remaining_cents=95000,
            )
        )
    ).text
    for printed in (
        "Total 1,234.56",
        "Taken from your balance -34.56",
        "Amount due USD 1,200.00",
        "Paid -200.00",
        "Credited -50.00",  # the other 40.00 went to the balance
        "Left to pay 950.00",
        "Due by 15 Feb 2026 USD 950.00",
    ):
        assert printed in text, printed


def test_what_a_credit_note_puts_on_the_balance_is_not_taken_off() -> None:
    """The invoice was paid by then."""
    note = {"number": "CN-2026-0001", "reason": "Blank", "issue_date": "2026-03-01", "total_cents": 3000}
    paid = {"status": "paid", "paid_cents": 121456, "credited_cents": 3000, "remaining_cents": 0}
    shown = Page(page(document(credit_notes=[note | {"to_balance_cents": 1000}], **paid))).text
    assert "Blank · 10.00 to your balance -30.00" in shown
    assert "Credited -20.00 Left to pay 0.00" in shown


@pytest.mark.parametrize(
    ("packages", "label"), [(0, "0 packages of 100"), (1, "1 package of 100"), (2, "2 packages of 100")]
)
def test_packages_are_counted(packages: int, label: str) -> None:
    tier = {
        "from": 0,
        "to": 9,
        "quantity": 9,
        "unit_amount_cents": 1,
        "amount_cents": 1,
        "packages": packages,
        "package_size": 100,
    }
    assert label in Page(page(document(lines=[LINE | {"price": {"model": "package"}, "tiers": [tier]}]))).text


def test_an_inclusive_tax_is_told_and_not_added() -> None:
    tax = {"line_number": 2, "description": "VAT 20 %, included", "inclusive": True, "amount_cents": 20576}
    made = document(lines=[LINE], tax=tax)
    text = Page(page(made)).text
    assert "Total 1,234.56 VAT 20 %, included 205.76 Amount due USD 1,234.56" in text
    assert [row["amount_cents"] for row in rows(made)] == ["123456", "0"]


# CSV


def rows(made: Document) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(lines_csv(made), newline="")))


def test_csv_is_a_row_a_line_and_adds_up_to_the_total(owner: httpx.Client, invoice: str) -> None:
    answer = owner.get(f"/api/billing/invoices/{invoice}.csv")
    assert answer.text.split("\r\n")[0] == ",".join(COLUMNS)
    assert answer.text.endswith("\r\n") and "\n" not in answer.text.replace("\r\n", "")
    found = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    shown = owner.get(f"/api/billing/invoices/{invoice}").json()
    assert sum(Decimal(row["amount_cents"]) for row in found) == shown["total_cents"]
    assert sum(Decimal(row["amount"]) for row in found) * 100 == shown["total_cents"]
    assert [row["line_number"] for row in found] == ["1", "2", "3"]
    assert [row["kind"] for row in found] == ["usage", "usage", "tax"]


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula(begins: str) -> None:
    text = f'{begins}HYPERLINK("x"),\r\n1'
    [row] = rows(document(lines=[LINE | {"description": text, "unit": text, "meter": text, "groups": {text: text}}]))
    assert (row["description"], row["unit"], row["meter"]) == (f"'{text}",) * 3
    assert row["groups"] == f"'{text}={text}"


def test_numbers_stay_numbers() -> None:
    tiny = json.dumps(INVOICE | {"lines": [LINE | {"amount_cents": -5, "quantity": -2}]}).replace(
        '"unit_amount_cents": 123456', '"unit_amount_cents": 0.00000001'
    )
    [row] = rows(Document.of_json(tiny.encode()))
    assert (row["quantity"], row["unit_amount_cents"], row["amount_cents"], row["amount"]) == (
        "-2",
        "0.00000001",
        "-5",
        "-0.05",
    )


# Numbers


@pytest.mark.parametrize(
    ("cents", "minor_units", "text"),
    [
        ("0", 2, "0.00"),
        ("-0", 2, "0.00"),
        ("5", 2, "0.05"),
        ("-5", 2, "-0.05"),
        ("123456789", 2, "1,234,567.89"),
        ("-123456", 2, "-1,234.56"),
        ("1234567", 0, "1,234,567"),
        ("12.5", 0, "12.5"),
        ("1234567", 3, "1,234.567"),
        ("0.25", 2, "0.0025"),
        ("100.500", 2, "1.005"),
        ("1E+3", 2, "10.00"),
        ("12345678901234567890123456789012345", 2, "123,456,789,012,345,678,901,234,567,890,123.45"),
    ],
)
def test_money_is_printed_exactly(cents: str, minor_units: int, text: str) -> None:
    assert money(Decimal(cents), minor_units) == text


def test_totals_of_any_size_are_printed_exactly() -> None:
    """Python's own arithmetic would round them to 28 digits."""
    cents = 12345678901234567890123456789012345
    made = json.dumps(INVOICE | dict.fromkeys(("total_cents", "amount_due_cents", "balance_applied_cents"), cents))
    text = Page(page(Document.of_json(made.encode()))).text
    assert "Taken from your balance -123,456,789,012,345,678,901,234,567,890,123.45" in text


@pytest.mark.parametrize(
    ("number", "text"), [("1204", "1,204"), ("18234.50", "18,234.5"), ("-3", "-3"), ("0.000", "0"), ("100", "100")]
)
def test_quantities_are_printed_exactly(number: str, text: str) -> None:
    assert quantity(Decimal(number)) == text


PRORATED: dict[str, Any] = {
    "model": "per_unit",
    "plan": "small",
    "in_force": [
        {"from": "2026-01-01T00:00:00.000000Z", "until": "2026-01-11T00:00:00.000000Z"},
        {"from": "2026-01-31T00:00:00.000000Z", "until": "2026-02-01T00:00:00.000000Z"},
    ],
}


def in_berlin(*spans: tuple[str, str]) -> dict[str, Any]:
    period = {"start_date": "2026-03-01", "end_date": "2026-04-01", "timezone": "Europe/Berlin"}
    price = PRORATED | {"in_force": [{"from": start, "until": end} for start, end in spans]}
    return {"period": period, "lines": [LINE | {"price": price}]}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lines": [LINE | {"price": PRORATED}]}, "small: 1 Jan 2026 – 10 Jan 2026 and 31 Jan 2026, 11 of 31 days"),  # noqa: RUF001
        (
            {"lines": [LINE | {"kind": "fee", "quantity": 0.354839, "price": PRORATED | {"model": "flat"}}]},
            "For 35.4839 % of the period 1 Jan 2026 – 10 Jan 2026 and 31 Jan 2026, 11 of 31 days",  # noqa: RUF001
        ),
        ({"lines": [LINE | {"price": PRORATED | {"trial": True}}]}, "Trial of small: 1 Jan 2026 – 10 Jan 2026 and"),  # noqa: RUF001
        ({"lines": [LINE | {"price": {"model": "per_unit", "plan": "small", "trial": True}}]}, "Trial of small"),
        (
            in_berlin(("2026-02-28T23:00:00.000000Z", "2026-03-29T22:00:00.000000Z")),
            "small: 1 Mar 2026 – 29 Mar 2026, 29 of 31 days",  # noqa: RUF001
        ),
        (
            in_berlin(("2026-03-11T06:13:20.000000Z", "2026-03-31T10:30:00.000000Z")),
            "small: 11 Mar 2026 07:13:20 – 31 Mar 2026 12:30",  # noqa: RUF001
        ),
    ],
)
def test_a_price_that_was_in_force_for_a_part_says_when(fields: dict[str, Any], text: str) -> None:
    assert text in Page(page(document(**fields))).text


def test_a_price_that_was_in_force_all_the_time_says_nothing_of_it() -> None:
    text = Page(page(document(lines=[LINE | {"price": {"model": "per_unit", "plan": "small"}}]))).text
    assert "small" not in text


def test_csv_says_of_which_plan_a_price_is_and_when_it_was_in_force() -> None:
    lines = [LINE | {"price": PRORATED | {"trial": True}}, LINE | {"line_number": 2}]
    one, other = csv.DictReader(io.StringIO(lines_csv(document(lines=lines)), newline=""))
    assert [one["plan"], one["trial"]] == ["small", "true"]
    assert one["in_force"] == (
        "2026-01-01T00:00:00+00:00/2026-01-11T00:00:00+00:00; 2026-01-31T00:00:00+00:00/2026-02-01T00:00:00+00:00"
    )
    assert [other["plan"], other["trial"], other["in_force"]] == ["", "", ""]
