"""GET /api/billing/portal_link: Stripe's pages about a subscription, for owners of the organization whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from api.stripe import fixtures
from tests.audit_log import entries
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem
from tests.stripe_server import StripeServer, stripe_server

PATH = "/api/billing/portal_link"
SESSIONS = "/v1/billing_portal/sessions"
APP = "https://app.example.com"


@pytest.fixture(scope="module")
def stripe() -> Iterator[StripeServer]:
    with stripe_server() as server:
        yield server


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack, stripe: StripeServer) -> Iterator[RunningStack]:
    with open_stack(stripe_secret_key=SecretStr(stripe.key), stripe_api_base=stripe.url, app_url=f"{APP}/") as running:
        yield running


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


@pytest.fixture
def customer(stack: RunningStack, stripe: StripeServer, organization: Organization) -> str:
    id = f"cus_{organization.slug.replace('-', '')}"
    stripe.put(fixtures.customer(id))
    stripe.forget_requests()
    link(stack, organization, id)
    return id


def link(stack: RunningStack, organization: Organization, customer: str) -> None:
    with stack.database.connect() as superuser:
        superuser.execute("select stripe.link(%s, %s, false)", [organization.id, customer])


def open_portal(stack: RunningStack, organization: Organization, who: str = "owner", **params: Any) -> httpx.Response:
    with stack.client(organization[who].subject) as client:
        return client.get(PATH, params=params or {"tenant_id": organization.slug})


def test_an_owner_gets_a_link(
    stack: RunningStack, stripe: StripeServer, organization: Organization, customer: str
) -> None:
    for named in (organization.slug, str(organization.id)):
        answer = open_portal(stack, organization, tenant_id=named)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert said.pop("portal_url").startswith(f"{stripe.url}/p/session/")
        assert said.pop("banner").startswith("Test mode")
        assert said == {"success": True, "configured": True, "test_mode": True}
        assert answer.headers["Cache-Control"] == "no-store"
    asked = stripe.requests(SESSIONS)
    assert [one["params"] for one in asked] == [{"customer": customer, "return_url": f"{APP}/billing"}] * 2


def test_before_the_first_subscription_there_is_none(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    stripe.forget_requests()
    answer = open_portal(stack, organization)
    assert_problem(answer, 404, "NO_SUBSCRIPTION")
    assert "create_checkout_session" in answer.json()["hint"]
    assert stripe.requests(SESSIONS) == []


def test_of_several_customers_the_one_that_is_there_counts(
    stack: RunningStack, stripe: StripeServer, organization: Organization, customer: str
) -> None:
    with stack.database.connect() as superuser:
        superuser.execute("update stripe.customers set deleted_at = now() where id = %s", [customer])
    assert_problem(open_portal(stack, organization), 404, "NO_SUBSCRIPTION")
    stripe.put(fixtures.customer(f"{customer}_next"))
    link(stack, organization, f"{customer}_next")
    assert open_portal(stack, organization).status_code == 200
    assert stripe.requests(SESSIONS)[-1]["params"]["customer"] == f"{customer}_next"


@pytest.mark.parametrize("role", ["admin", "member", "viewer", "billing"])
def test_only_owners_open_it(
    stack: RunningStack, stripe: StripeServer, organization: Organization, customer: str, role: str
) -> None:
    assert_problem(open_portal(stack, organization, role), 403, "ROLE_REQUIRED")
    assert stripe.requests(SESSIONS) == []


def test_nobody_opens_that_of_others(
    stack: RunningStack,
    stripe: StripeServer,
    organization: Organization,
    customer: str,
    make_organization: MakeOrganization,
) -> None:
    other = make_organization(stack.database)
    with stack.client(other["owner"].subject) as client:
        for named in (organization.slug, str(organization.id), "no-such-organization"):
            assert_problem(client.get(PATH, params={"tenant_id": named}), 403, "NOT_A_MEMBER")
    for role in ("service", "platform_admin", "anon"):
        with stack.client("staff|1", role=role, org=organization.id) as client:
            assert_problem(client.get(PATH, params={"tenant_id": organization.slug}), 403, "ROLE_REQUIRED")
    with httpx.Client(base_url=stack.gateway_url, trust_env=False) as client:
        assert_problem(client.get(PATH, params={"tenant_id": organization.slug}), 401, "INVALID_TOKEN")
    assert stripe.requests(SESSIONS) == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "ORGANIZATION_REQUIRED"),
        ("?tenant_id=", "ORGANIZATION_REQUIRED"),
        ("?tenant_id=%00", "ORGANIZATION_REQUIRED"),
        ("?tenant=acme", "UNKNOWN_PARAMETER"),
        ("?tenant_id=a&tenant_id=b", "UNKNOWN_PARAMETER"),
        ("?tenant_id=a&return_url=https://evil.example", "UNKNOWN_PARAMETER"),
    ],
)
def test_who_says_for_whom_says_it_once(stack: RunningStack, organization: Organization, query: str, code: str) -> None:
    with stack.client(organization["owner"].subject) as client:
        assert_problem(client.get(f"{PATH}{query}"), 400, code)


def test_what_stripe_refuses_is_passed_on(
    stack: RunningStack, stripe: StripeServer, organization: Organization, customer: str
) -> None:
    stripe.fail(path=SESSIONS, kind="status", status=400, code="resource_missing")
    answer = open_portal(stack, organization)
    assert_problem(answer, 502, "STRIPE_REFUSED")
    assert "It was told to fail." in answer.json()["message"]
    with stack.database.connect() as superuser:
        assert not [one for one in entries(superuser, organization.id) if one.action == "portal.opened"]


def test_it_is_in_the_audit_log(stack: RunningStack, organization: Organization, customer: str) -> None:
    open_portal(stack, organization)
    with stack.database.connect() as superuser:
        [entry] = [one for one in entries(superuser, organization.id) if one.action == "portal.opened"]
    assert (entry.actor_type, entry.actor_id) == ("user", str(organization["owner"].id))
    assert (entry.target_id, entry.email) == (customer, organization["owner"].email)
