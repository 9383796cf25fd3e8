"""The contract at /openapi.json: it is valid OpenAPI, says what PostgREST and the sidecar really answer, promises
nothing that nobody is granted, and never breaks what docs/openapi.json has promised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from html.parser import HTMLParser
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis

from api.contract import DOCUMENT, document_text, read_catalog, write_document
from api.contract.catalog import Catalog
from api.contract.openapi import build_document
from api.contract.openapi.compatibility import breaking_changes
from api.contract.openapi.examples import RESULTS, ROWS
from api.settings import Settings
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.own_tables import own_tables
from tests.usage import month

Document = dict[str, Any]


@pytest.fixture(scope="module")
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database, "acme")


@pytest.fixture(scope="module")
def catalog(stack: RunningStack) -> Catalog:
    return read_catalog(stack.database.migrator)


@pytest.fixture(scope="module")
def document(stack: RunningStack) -> Document:
    answer = httpx.get(f"{stack.gateway_url}/openapi.json", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found: Document = answer.json()
    return found


@pytest.fixture
def owner(stack: RunningStack, organization: Organization) -> Iterator[httpx.Client]:
    with stack.client(organization["owner"].subject) as client:
        yield client


def operations(document: Document) -> dict[tuple[str, str], Document]:
    return {(method, path): each for path, methods in document["paths"].items() for method, each in methods.items()}


def validator(document: Document, schema: Document) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]}, validate_formats=True)


def test_document_is_valid(document: Document) -> None:
    assert document["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(document).validate()


def test_command_prints_what_is_served(document: Document, catalog: Catalog) -> None:
    assert json.loads(document_text(catalog)) == document


# What was promised


def test_nothing_that_was_promised_is_broken(document: Document) -> None:
    """`goldleaves openapi --write` makes a new promise, and says which changes break the old one."""
    assert breaking_changes(json.loads(DOCUMENT.read_text()), document) == []


def test_writing_names_what_breaks(catalog: Catalog, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    promised = tmp_path / "openapi.json"
    monkeypatch.setattr("api.contract.DOCUMENT", promised)
    assert write_document(catalog) == []
    fewer = catalog.model_copy(update={"views": tuple(view for view in catalog.views if view.name != "cases")})
    assert write_document(fewer) == ["/api/v1/cases is gone"]
    assert json.loads(promised.read_text()) == build_document(fewer)


# What PostgREST says of itself


@pytest.fixture(scope="module")
def of_postgrest(stack: RunningStack, organization: Organization) -> Document:
    """PostgREST's own description, as a member and the provider's staff see it."""
    found: Document = {}
    for subject, role in ((organization["owner"].subject, "member"), ("staff", "platform_admin")):
        token = stack.token(subject, role=role)
        answer = httpx.get(stack.postgrest_url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
        assert answer.status_code == 200, answer.text
        theirs: Document = answer.json()
        for part in ("paths", "definitions"):
            theirs[part] = found.get(part, {}) | theirs[part]
        found = theirs
    return found


def test_postgrest_names_the_gateway_and_not_itself(stack: RunningStack, of_postgrest: Document) -> None:
    assert f"http://{of_postgrest['host']}{of_postgrest['basePath']}" == f"{stack.gateway_url}/api/v1"


def test_paths_are_those_of_postgrest(document: Document, of_postgrest: Document) -> None:
    ours = {path.removeprefix("/api/v1") for path in document["paths"] if path.startswith("/api/v1")}
    assert ours == set(of_postgrest["paths"]) - {"/"}


def test_columns_and_their_types_are_those_of_postgrest(document: Document, of_postgrest: Document) -> None:
    for name, definition in of_postgrest["definitions"].items():
        columns = document["components"]["schemas"][name]["properties"]
        assert list(columns) == list(definition["properties"]), name
        for column, theirs in definition["properties"].items():
            types = columns[column].get("type", [])
            assert theirs.get("type") in ([types] if isinstance(types, str) else types) or theirs["format"] == "jsonb"


def test_arguments_are_those_of_postgrest(document: Document, of_postgrest: Document) -> None:
    for path, methods in of_postgrest["paths"].items():
        if not path.startswith("/rpc/"):
            continue
        [args] = [p["schema"] for p in methods["post"]["parameters"] if p.get("name") == "args"]
        body = document["paths"][f"/api/v1{path}"]["post"].get("requestBody", {"content": {}})
        ours = body["content"].get("application/json", {}).get("schema", {})
        assert set(ours.get("properties", {})) == set(args.get("properties", {})), path
        assert ours.get("required", []) == args.get("required", []), path


# What is granted

ASKED = {"get": "select", "post": "insert", "patch": "update", "delete": "delete"}


def test_operations_are_what_somebody_is_granted(stack: RunningStack, document: Document) -> None:
    """By Postgres' own account of privileges: no operation is listed that nobody may use, and none is missing."""
    with stack.database.connect() as superuser:
        granted = {
            (table, privilege.lower())
            for table, privilege in superuser.execute(
                """
                select table_name, privilege_type from information_schema.table_privileges
                where table_schema = 'api' and grantee in ('anon', 'member', 'service', 'platform_admin')
                union
                select table_name, privilege_type from information_schema.column_privileges
                where table_schema = 'api' and grantee in ('anon', 'member', 'service', 'platform_admin')
                """
            )
        }
    listed = {
        (path.removeprefix("/api/v1/"), ASKED[method])
        for method, path in operations(document)
        if path.startswith("/api/v1/") and "/rpc/" not in path
    }
    assert listed == granted


def test_functions_that_write_are_not_called_with_get(document: Document) -> None:
    assert "get" not in document["paths"]["/api/v1/rpc/sign_in"]
    assert "get" in document["paths"]["/api/v1/rpc/usage_summary"]


# What is answered

FOR_STAFF = (
    *("meter_versions", "prices", "rejected_events", "webhook_messages"),
    *("stripe_webhook_events", "stripe_meter_event_reports", "stripe_reconciliations"),
    "stripe_invoice_items",
)


def test_real_rows_are_as_described(
    stack: RunningStack, organization: Organization, document: Document, owner: httpx.Client
) -> None:
    """A row of every view and an answer of every function that people use, checked against its schema."""
    assert owner.post("/api/v1/workspaces", json={"name": "Room"}).status_code == 201
    key = owner.post("/api/v1/rpc/create_api_key", json={"name": "Export", "scopes": ["data:read"]})
    invited = owner.post("/api/v1/rpc/create_invitation", json={"email": "new@example.com", "role": "viewer"})
    client = owner.post("/api/v1/clients", json={"name": "Firm"}, headers={"Prefer": "return=representation"}).json()[0]
    case = owner.post(
        "/api/v1/cases",
        json={"title": "One", "client_id": client["id"]},
        headers={"Prefer": "return=representation"},
    ).json()[0]
    assert owner.post("/api/v1/documents", json={"title": "Paper", "case_id": case["id"]}).status_code == 201
    send_events(stack, organization, month(1))
    headers = {"X-Organization-ID": organization.slug}
    with stack.client("staff", role="platform_admin") as staff:
        closed = staff.post("/api/v1/rpc/finalize_period", json={"period_start": str(month(1))}, headers=headers)
        rated = staff.get(f"/api/v1/rpc/recalculate_period?period_start={month(0)}", headers=headers)

    with stack.client("staff", role="platform_admin") as staff:
        call(document, staff, "remake_storage_snapshots", day=str(month(1)))
        headers = {"X-Organization-ID": organization.slug}
        call(document, owner, "set_billing_profile", legal_name="Firm", country="DE")
        call(document, owner, "set_budget", amount_cents=1)
        alert = call(document, owner, "create_usage_alert", threshold_kind="absolute", threshold=1)
        with stack.database.connect("sidecar") as sidecar:
            sidecar.execute("select billing.fire_alerts()")
        terms = staff.post("/api/v1/rpc/set_billing_terms", json={"tax_percent": 19}, headers=headers)
        check(document, "post", "/api/v1/rpc/set_billing_terms", terms)
        staff.headers["X-Organization-ID"] = organization.slug
        settle(document, staff, closed.json())
        call(document, staff, "start_subscription", plan="pro")
        call(document, staff, "set_entitlement", feature="pages", kind="limit_per_period", limit_value=9)
        call(document, staff, "reserve_quota", n=3, feature="pages", reference="book")
        call(document, staff, "release_quota", n=1, feature="pages", reference="book")
        call(document, staff, "link_stripe_customer", customer_id="cus_acme")
        call(document, staff, "set_stripe_price", plan="pro", price_id="price_of_pro")
        of_stripe(stack, organization)
        call(document, staff, "replay_stripe_event", event_id="evt_acme")
        call(document, staff, "replay_stripe_events")
        del staff.headers["X-Organization-ID"]
        for view in ROWS:
            answer = (staff if view in FOR_STAFF else owner).get(f"/api/v1/{view}")
            assert answer.json(), view
            check(document, "get", f"/api/v1/{view}", answer)
        call(document, owner, "delete_usage_alert", id=alert["id"])
        call(document, owner, "set_budget", amount_cents=None)
        of_meter = {"code": "ai.tokens", "unit": "token", "description": "Tokens", "event_name": "ai_completion"}
        call(document, staff, "create_meter", **of_meter)
        call(document, staff, "change_meter", code="ai.tokens", group_by=["model"])
        call(document, staff, "delete_meter", code="ai.tokens")
        call(document, staff, "set_operation_weight", operation="ai_completion", weight=12)
        call(document, staff, "create_plan", code="scale", name="Scale", is_public=False)
        call(document, staff, "change_plan", code="scale", description="For whole groups.", position=4)
        call(document, staff, "set_plan_feature", plan="scale", feature="members", kind="limit", limit_value=100)
        call(document, staff, "remove_plan_feature", plan="scale", feature="members")
        call(document, staff, "create_price", meter="api.request", plan="scale", unit_amount_cents=12.5)
        staff.headers["X-Organization-ID"] = organization.slug
        call(document, staff, "set_plan", plan="scale")
    check(document, "post", "/api/v1/rpc/create_api_key", key)
    of_key = {"id": key.json()["id"]}
    for function in ("rotate_api_key", "revoke_api_key"):
        check(document, "post", f"/api/v1/rpc/{function}", owner.post(f"/api/v1/rpc/{function}", json=of_key))
    check(document, "post", "/api/v1/rpc/create_invitation", invited)
    check(document, "post", "/api/v1/rpc/finalize_period", closed)
    check(document, "get", "/api/v1/rpc/recalculate_period", rated)
    check(document, "get", "/api/v1/rpc/usage_summary", owner.get("/api/v1/rpc/usage_summary"))
    unmetered = owner.get(f"/api/v1/rpc/usage_summary?period_start={month(1)}")
    assert {line["meter"] for line in unmetered.json()} >= {"doc.upload", "unmetered"}
    check(document, "get", "/api/v1/rpc/usage_summary", unmetered)
    report = owner.get(f"/api/v1/rpc/usage_report?from={month(1)}&to={month(0)}")
    assert {line["meter"] for line in report.json()} >= {"doc.upload", "unmetered"}
    check(document, "get", "/api/v1/rpc/usage_report", report)
    for path, asked in (
        ("invoices/{invoice_id}", f"invoices/{closed.json()['id']}"),
        ("preview-invoice", "preview-invoice"),
    ):
        check(document, "get", f"/api/billing/{path}", owner.get(f"/api/billing/{asked}"))
        for suffix in (".csv", ".html"):
            kinds = document["paths"][f"/api/billing/{path}{suffix}"]["get"]["responses"]["200"]["content"]
            assert owner.get(f"/api/billing/{asked}{suffix}").headers["content-type"].partition(";")[0] in kinds
    check(document, "post", "/api/v1/rpc/sign_in", owner.post("/api/v1/rpc/sign_in"))
    check(document, "get", "/api/v1/rpc/health", owner.get("/api/v1/rpc/health"))
    check(document, "get", "/health", owner.get("/health"))
    with stack.client("somebody-alone") as alone:
        converted = alone.post("/api/v1/rpc/convert_to_organization", json={"name": "Firm", "slug": "alone"})
        check(document, "post", "/api/v1/rpc/convert_to_organization", converted)


def of_stripe(stack: RunningStack, organization: Organization) -> None:
    """What Stripe has told of the organization, and what it is told."""
    paid = {"id": "in_acme", "object": "invoice", "customer": "cus_acme", "status": "paid", "amount_paid": 4900}
    event = {"id": "evt_acme", "type": "invoice.paid", "created": 1767225600, "livemode": False}
    with stack.database.connect("sidecar") as sidecar:
        sidecar.execute(
            "select stripe.receive_events(array[%s], null)",
            [json.dumps({**event, "data": {"object": {**paid, "currency": "usd", "number": "A-1"}}})],
        )
    with stack.database.connect() as superuser:
        superuser.execute(
            """
            insert into stripe.meter_event_reports (organization_id, meter_code, bucket_start, sequence, quantity,
              identifier, customer_id, event_name, period_start, status, generation, xid)
            values (%(org)s, 'api.request', '2026-01-01Z', 1, 341, 'acme', 'cus_acme', 'api.request', '2026-01-01Z',
              'acknowledged', 1, '3')
            """,
            {"org": organization.id},
        )
        superuser.execute(
            """
            insert into stripe.reconciliations (organization_id, period_start, kind, subject, ours, theirs, drift,
              cause)
            values (%s, '2026-01-01Z', 'usage', 'api.request', 341, 341, 0, 'in step')
            """,
            [organization.id],
        )
        superuser.execute(
            """
            insert into stripe.invoice_items (organization_id, kind, meter_code, amount_cents, currency, description,
              period_start, period_end)
            values (%s, 'credit', 'api.request', -75, 'usd', 'Taken back', '2026-01-01Z', '2026-02-01Z')
            """,
            [organization.id],
        )


def settle(document: Document, staff: httpx.Client, invoice: Document) -> None:
    """Pay the invoice, credit 10 of it, pay back 2 of them, and write off what another refund leaves to be paid."""
    of_invoice = {"invoice_id": invoice["id"]}
    paid = call(
        document,
        staff,
        "record_payment",
        **of_invoice,
        amount_cents=invoice["total_cents"],
        method="cash",
        reference="1",
    )
    lines = [{"line_number": 1, "amount_cents": 10}]
    note = call(document, staff, "create_credit_note", **of_invoice, lines=lines, reason="wrong")
    refund = {"payment_id": paid["id"], "amount_cents": 2}
    call(document, staff, "record_refund", **refund, credit_note_id=note["id"], reference="1")
    call(document, staff, "record_refund", **refund, reference="2")
    call(document, staff, "write_off_invoice", **of_invoice, reason="gone")


def test_changes_of_people_are_as_described(
    stack: RunningStack, organization: Organization, document: Document, owner: httpx.Client
) -> None:
    call(
        document,
        owner,
        "revoke_invitation",
        id=call(document, owner, "create_invitation", email="a@b", role="viewer")["id"],
    )
    sent = call(document, owner, "create_invitation", email="newcomer@example.com", role="viewer")
    sent = call(document, owner, "resend_invitation", id=sent["id"])
    with stack.client("newcomer", email=sent["email"]) as newcomer:
        newcomer.headers["X-Organization-ID"] = call(document, newcomer, "accept_invitation", code=sent["code"])["id"]
        me = newcomer.post("/api/v1/rpc/sign_in").json()["user_id"]
        call(document, owner, "change_member_role", user_id=me, role="admin")
        call(document, owner, "transfer_ownership", user_id=me)
        call(document, newcomer, "transfer_ownership", user_id=str(organization["owner"].id))
        call(document, newcomer, "leave_organization")
    call(document, owner, "remove_member", user_id=str(organization["billing"].id))


def test_real_errors_are_as_described(document: Document, owner: httpx.Client) -> None:
    wrong = owner.get("/api/v1/cases?id=eq.1")
    assert wrong.status_code == 400
    check(document, "get", "/api/v1/cases", wrong)
    refused = owner.post("/v1/events", json=[])
    assert refused.status_code == 403
    check(document, "post", "/v1/events", refused)


def send_events(stack: RunningStack, organization: Organization, day: date) -> None:
    """One that a meter counts, one that none does, and one that is rejected."""
    events = [
        {"id": str(number), "event": name, "quantity": 1.5, "time": f"{day}T12:00:00Z"}
        for number, name in enumerate(("doc.upload", "unmetered"))
    ]
    with stack.client("backend", role="service", org=organization.id) as backend:
        outcome = backend.post("/v1/events", json=[*events, {**events[0], "id": "", "quantity": -1}]).json()
    assert (outcome["accepted"], len(outcome["rejected"])) == (2, 1)


def call(document: Document, client: httpx.Client, function: str, **arguments: object) -> Any:
    answer = client.post(f"/api/v1/rpc/{function}", json=arguments)
    check(document, "post", f"/api/v1/rpc/{function}", answer)
    return answer.json()


def check(document: Document, method: str, path: str, answer: httpx.Response) -> None:
    """The answer has a status that is listed, and its body is as the schema of that status says."""
    described = document["paths"][path][method]["responses"]
    assert str(answer.status_code) in described, (path, answer.text)
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = described[str(answer.status_code)]["content"][media_type]["schema"]
    validator(document, schema).validate(answer.json())


# Examples


def test_examples_are_as_described(document: Document) -> None:
    for name, row in ROWS.items():
        validator(document, document["components"]["schemas"][name]).validate(row)
        assert list(row) and set(row) == set(document["components"]["schemas"][name]["properties"]), name
    for (method, path), operation in operations(document).items():
        for described in (operation.get("requestBody", {}), *operation["responses"].values()):
            for content in described.get("content", {}).values():
                if "example" in content:
                    validator(document, content["schema"]).validate(content["example"])
                for example in content.get("examples", {}).values():
                    name = example["$ref"].rpartition("/")[2]
                    value = document["components"]["examples"][name]["value"]
                    assert validator(document, content["schema"]).is_valid(value), (method, path, name)


def test_everything_that_goldleaves_brings_has_an_example(catalog: Catalog) -> None:
    assert set(ROWS) == {view.name for view in catalog.views} - {
        table.view.removeprefix("api.") for table in own_tables()
    }
    assert set(RESULTS) == {function.name for function in catalog.functions}


def test_every_column_of_a_result_is_explained(catalog: Catalog) -> None:
    unexplained = [(f.name, column.name) for f in catalog.functions for column in f.columns if not column.comment]
    assert unexplained == []


# The page

PAGE_FILES = {
    "docs/favicon-32x32.png",
    "docs/swagger-ui.css",
    "docs/page.css",
    "docs/swagger-ui-bundle.js",
    "docs/page.js",
}


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attrs if name in ("href", "src") and value}


def test_page_asks_nobody_else_for_anything(stack: RunningStack) -> None:
    with httpx.Client(base_url=stack.gateway_url, trust_env=False) as browser:
        page = browser.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        links = Links()
        links.feed(page.text)
        assert links.found == PAGE_FILES | {"openapi.json"}
        for link in links.found:
            assert browser.get(f"/{link}").status_code == 200, link
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert "http" not in page.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["swagger-ui.js", "..%2fapp.py", "../app.py", "index.html"])
def test_page_gives_away_no_other_files(stack: RunningStack, name: str) -> None:
    answer = httpx.get(f"{stack.gateway_url}/docs/{name}", trust_env=False)
    assert answer.status_code == 404
    assert answer.json()["message"].startswith("ROUTE_NOT_FOUND: ")


def test_document_names_no_schema_but_api(document: Document) -> None:
    """Anybody may read it: it shows what the API is, and nothing of what is behind it."""
    text = json.dumps(document)
    for hidden in ("metering.", "tenancy.", "goldleaves_kernel", "yoyo", "127.0.0.1", "postgresql://"):
        assert hidden not in text, hidden


def test_docs_can_be_switched_off(open_stack: OpenStack) -> None:
    with open_stack(enable_docs=False) as stack, httpx.Client(base_url=stack.gateway_url, trust_env=False) as browser:
        for path in ("/docs", "/docs/page.js", "/openapi.json"):
            answer = browser.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["message"].startswith("ROUTE_NOT_FOUND: ")


def test_docs_are_off_in_production_unless_asked_for() -> None:
    assert Settings().docs_are_served
    production = Settings.model_construct(environment="production")
    assert not production.docs_are_served
    assert production.model_copy(update={"enable_docs": True}).docs_are_served
