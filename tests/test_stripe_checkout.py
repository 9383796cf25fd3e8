"""POST /api/billing/create_checkout_session: owners get a page of Stripe's to buy a plan on, and nobody else does."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr

from api.stripe import fixtures
from tests.audit_log import entries
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem
from tests.stripe_server import StripeServer, stripe_server
from tests.usage import value

PATH = "/api/billing/create_checkout_session"
SESSIONS = "/v1/checkout/sessions"
PUBLISHABLE = "pk_test_of_the_stand_in"
PRICE_OF = {"starter": "price_starter", "pro": "price_pro", "firm": None}
APP = "https://app.example.com"


@pytest.fixture(scope="module")
def stripe() -> Iterator[StripeServer]:
    with stripe_server() as server:
        server.put(fixtures.price("price_starter"), fixtures.price("price_pro"), fixtures.price("price_next"))
        server.put({"object": "coupon", "id": "HALF"})
        yield server


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack, stripe: StripeServer) -> Iterator[RunningStack]:
    settings = {
        "stripe_secret_key": SecretStr(stripe.key),
        "stripe_publishable_key": PUBLISHABLE,
        "stripe_webhook_secret": SecretStr(stripe.secret),
        "stripe_api_base": stripe.url,
        "app_url": APP,
    }
    with open_stack(**settings) as running:
        with running.database.connect() as superuser:
            for plan, price in PRICE_OF.items():
                if price is not None:
                    superuser.execute("select stripe.set_price(%s, %s)", [plan, price])
        stripe.send_webhooks_to(f"{running.gateway_url}/api/billing/stripe_webhook")
        yield running


@pytest.fixture(autouse=True)
def nothing_asked(stripe: StripeServer) -> None:
    stripe.mend()
    stripe.forget_requests()


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


def buy(
    stack: RunningStack, organization: Organization | str, plan: Any = "pro", who: str = "owner", **more: Any
) -> httpx.Response:
    """A member of the organization asks, or with a slug the owner of another one, by `who`."""
    slug = organization if isinstance(organization, str) else str(organization.id)
    subject = who if isinstance(organization, str) else organization[who].subject
    with stack.client(subject) as client:
        return client.post(PATH, json={"plan": plan, "tenant_id": slug, **more})


def asked(stripe: StripeServer) -> list[dict[str, Any]]:
    return [one for one in stripe.requests(SESSIONS) if one["method"] == "POST" and one["path"] == SESSIONS]


def read(stack: RunningStack, statement: str, *parameters: object) -> Any:
    with stack.database.connect() as superuser:
        return value(superuser, statement, *parameters)


def write(stack: RunningStack, statement: str, *parameters: object) -> None:
    with stack.database.connect() as superuser:
        superuser.execute(statement, parameters)


def test_an_owner_gets_a_page_of_stripes(stack: RunningStack, stripe: StripeServer, organization: Organization) -> None:
    answer = buy(stack, organization)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said.pop("checkout_url").startswith(f"{stripe.url}/c/pay/cs_test_")
    banner = said.pop("banner")
    assert banner.startswith("Test mode")
    assert said == {"success": True, "configured": True, "test_mode": True, "publishable_key": PUBLISHABLE}
    assert answer.headers["Cache-Control"] == "no-store"

    [call] = asked(stripe)
    params = call["params"]
    named = {"organization_id": str(organization.id), "plan": "pro"}
    assert params["mode"] == "subscription"
    assert params["line_items"] == [{"price": "price_pro", "quantity": "1"}]
    assert params["client_reference_id"] == str(organization.id)
    assert params["metadata"] == params["subscription_data"]["metadata"] == named
    assert params["subscription_data"]["trial_period_days"] == "14"
    assert params["customer_email"] == organization["owner"].email
    assert params["allow_promotion_codes"] == "true"
    assert not params.keys() & {"customer", "discounts"}
    assert params["success_url"] == f"{APP}/billing?checkout=done"
    assert params["cancel_url"] == f"{APP}/billing?checkout=canceled"


def test_organizations_are_named_by_slug_or_id_at_either_path(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    with stack.client(organization["owner"].subject) as client:
        by_id = client.post(PATH, json={"plan": "pro", "tenant_id": str(organization.id)})
        by_slug = client.post("/billing/create_checkout_session", json={"plan": "pro", "tenant_id": organization.slug})
    assert by_id.json()["checkout_url"] == by_slug.json()["checkout_url"]


def test_asked_twice_it_is_one_checkout(stack: RunningStack, stripe: StripeServer, organization: Organization) -> None:
    urls = {buy(stack, organization).json()["checkout_url"] for _ in range(3)}
    assert len(urls) == 1
    keys = {call["idempotency_key"] for call in asked(stripe)}
    [key] = keys
    start = read(
        stack, "select extract(epoch from (billing.find_period(%s, now())).period_start)::bigint", organization.id
    )
    assert re.fullmatch(rf"goldleaves:{organization.id}:pro:{start}:[0-9a-f]{{16}}:0", key)
    assert read(stack, "select count(*) from stripe.checkout_sessions where organization_id = %s", organization.id) == 1


def test_another_plan_coupon_or_organization_is_another_checkout(
    stack: RunningStack, stripe: StripeServer, organization: Organization, make_organization: MakeOrganization
) -> None:
    other = make_organization(stack.database)
    urls = [
        buy(stack, organization).json()["checkout_url"],
        buy(stack, organization, "starter").json()["checkout_url"],
        buy(stack, organization, coupon="HALF").json()["checkout_url"],
        buy(stack, other).json()["checkout_url"],
    ]
    assert len(set(urls)) == len(urls)


def test_of_two_plans_one_can_be_paid(stack: RunningStack, stripe: StripeServer, organization: Organization) -> None:
    """Whoever had both pages open would have two subscriptions."""
    urls = [buy(stack, organization, plan).json()["checkout_url"] for plan in ("pro", "starter", "pro")]
    status = {one["id"]: one["status"] for one in stripe.all("checkout.session")}
    assert [status[url.rpartition("/")[2]] for url in urls] == ["expired", "expired", "open"]


def test_those_who_press_at_once_get_the_same_page(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    stripe.fail(path=SESSIONS, kind="slow", milliseconds=300, times=1)
    barrier = Barrier(4)

    def press(_: int) -> httpx.Response:
        barrier.wait(30)
        return buy(stack, organization)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(press, range(4)))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert len({answer.json()["checkout_url"] for answer in answers}) == 1
    assert read(stack, "select count(*) from stripe.checkout_sessions where organization_id = %s", organization.id) == 1


def test_a_checkout_that_has_expired_is_followed_by_another(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    urls = []
    for _ in range(3):
        urls.append(buy(stack, organization).json()["checkout_url"])
        expired = urls[-1].rpartition("/")[2]
        httpx.post(
            f"{stripe.url}{SESSIONS}/{expired}/expire",
            headers={"Authorization": f"Bearer {stripe.key}"},
            trust_env=False,
        ).raise_for_status()
    assert len(set(urls)) == 3
    keys = [call["idempotency_key"] for call in asked(stripe)]
    assert [key.rpartition(":")[2] for key in keys] == ["0", "0", "1", "1", "2"]


def test_a_key_that_stands_for_something_else_is_followed_by_another(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    """As after an upgrade that says the same to Stripe in other words."""
    buy(stack, organization)
    [call] = asked(stripe)
    key = call["idempotency_key"]
    stripe.forget()
    stripe.put(fixtures.price("price_starter"), fixtures.price("price_pro"), fixtures.price("price_next"))
    stripe.put({"object": "coupon", "id": "HALF"})
    httpx.post(
        f"{stripe.url}{SESSIONS}",
        headers={"Authorization": f"Bearer {stripe.key}", "Idempotency-Key": key},
        data={"mode": "setup", "success_url": APP, "line_items[0][price]": "price_pro"},
        trust_env=False,
    ).raise_for_status()
    again = buy(stack, organization)
    assert again.status_code == 200, again.text
    assert asked(stripe)[-1]["idempotency_key"] == f"{key.rpartition(':')[0]}:1"


def test_who_has_paid_is_linked_and_does_not_buy_again(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    session = buy(stack, organization).json()["checkout_url"].rpartition("/")[2]
    delivered = stripe.pay(session)
    assert {one["status"] for one in delivered} == {200}, delivered
    status = "select status from stripe.subscriptions where organization_id = %s"
    assert read(stack, status, organization.id) == "trialing"
    assert read(stack, "select linked_by from stripe.customers where organization_id = %s", organization.id)
    assert_problem(buy(stack, organization), 409, "SUBSCRIPTION_EXISTS")
    assert_problem(buy(stack, organization, "starter"), 409, "SUBSCRIPTION_EXISTS")


def test_who_has_paid_a_moment_ago_does_not_pay_twice(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    """The webhooks are still on their way."""
    session = buy(stack, organization).json()["checkout_url"].rpartition("/")[2]
    stripe.send_webhooks_to("http://127.0.0.1:9/nowhere")
    try:
        stripe.pay(session)
    finally:
        stripe.send_webhooks_to(f"{stack.gateway_url}/api/billing/stripe_webhook")
    answer = buy(stack, organization)
    assert_problem(answer, 409, "SUBSCRIPTION_EXISTS")
    assert "completed" in answer.json()["message"]


def test_who_has_paid_another_plan_a_moment_ago_does_not_pay_twice(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    """Not this page, either, when it was there before."""
    session = buy(stack, organization, "starter").json()["checkout_url"].rpartition("/")[2]
    stripe.fail(path=f"{SESSIONS}/{session}/expire", kind="status", status=500)
    page = buy(stack, organization).json()["checkout_url"].rpartition("/")[2]
    stripe.send_webhooks_to("http://127.0.0.1:9/nowhere")
    try:
        stripe.pay(session)
    finally:
        stripe.send_webhooks_to(f"{stack.gateway_url}/api/billing/stripe_webhook")
    for coupon in ({}, {"coupon": "HALF"}):
        assert_problem(buy(stack, organization, **coupon), 409, "SUBSCRIPTION_EXISTS")
    open_ones = [one["id"] for one in stripe.all("checkout.session") if one["status"] == "open"]
    made = "select array_agg(id) from stripe.checkout_sessions where organization_id = %s"
    assert not set(open_ones) & set(read(stack, made, organization.id)), page


def test_a_second_subscription_is_the_same_customers_and_has_no_trial(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    session = buy(stack, organization).json()["checkout_url"].rpartition("/")[2]
    stripe.pay(session)
    write(stack, "update stripe.subscriptions set status = 'canceled' where organization_id = %s", organization.id)
    stripe.forget_requests()
    again = buy(stack, organization)
    assert again.status_code == 200, again.text
    assert session not in again.json()["checkout_url"]
    params = asked(stripe)[-1]["params"]
    assert params["customer"] == read(
        stack, "select id from stripe.customers where organization_id = %s", organization.id
    )
    assert "customer_email" not in params
    assert "trial_period_days" not in params["subscription_data"]


@pytest.mark.parametrize(
    ("coupon", "discounts"),
    [("HALF", [{"coupon": "HALF"}]), ("promo_1", [{"promotion_code": "promo_1"}]), (None, None), ("", None)],
    ids=["coupon", "promotion code", "null", "empty"],
)
def test_a_coupon_takes_the_place_of_promotion_codes(
    stack: RunningStack, stripe: StripeServer, organization: Organization, coupon: str | None, discounts: Any
) -> None:
    answer = buy(stack, organization, coupon=coupon)
    assert answer.status_code == 200, answer.text
    params = asked(stripe)[-1]["params"]
    assert params.get("discounts") == discounts
    assert params.get("allow_promotion_codes") == (None if discounts else "true")


def test_the_newest_price_is_sold(stack: RunningStack, stripe: StripeServer, organization: Organization) -> None:
    write(stack, "select stripe.set_price('pro', 'price_next')")
    buy(stack, organization)
    write(stack, "select stripe.set_price('pro', 'price_pro')")
    buy(stack, organization)
    assert [call["params"]["line_items"][0]["price"] for call in asked(stripe)] == ["price_next", "price_pro"]


def test_bills_go_where_the_organization_has_said(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    write(
        stack,
        "insert into billing.billing_profiles (organization_id, billing_entity_type, email) "
        "values (%s, 'organization', 'bills@example.com')",
        organization.id,
    )
    buy(stack, organization)
    assert asked(stripe)[-1]["params"]["customer_email"] == "bills@example.com"


@pytest.mark.parametrize("role", ["admin", "member", "viewer", "billing"])
def test_only_owners_buy(stack: RunningStack, stripe: StripeServer, organization: Organization, role: str) -> None:
    assert_problem(buy(stack, organization, who=role), 403, "ROLE_REQUIRED")
    assert asked(stripe) == []


def test_who_was_an_owner_a_moment_ago_is_none(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    """What the sidecar remembers of people is not what decides."""
    assert buy(stack, organization).status_code == 200
    write(
        stack,
        "update tenancy.memberships set role = 'owner' where user_id = %s",
        organization["admin"].id,
    )
    write(stack, "delete from tenancy.memberships where user_id = %s", organization["owner"].id)
    assert_problem(buy(stack, organization), 403, "NOT_A_MEMBER")


def test_an_owner_of_another_organization_buys_nothing_here(
    stack: RunningStack, stripe: StripeServer, organization: Organization, make_organization: MakeOrganization
) -> None:
    other = make_organization(stack.database)
    stranger = other["owner"].subject
    assert_problem(buy(stack, organization.slug, who=stranger), 403, "NOT_A_MEMBER")
    assert_problem(buy(stack, str(organization.id), who=stranger), 403, "NOT_A_MEMBER")
    # Alike, whether it is there or not.
    assert_problem(buy(stack, "no-such-organization", who=stranger), 403, "NOT_A_MEMBER")
    assert_problem(buy(stack, str(UUID(int=7)), who=stranger), 403, "NOT_A_MEMBER")
    with stack.client(stranger, org=other.id) as client:  # whatever the header says, the body counts
        refused = client.post(PATH, json={"plan": "pro", "tenant_id": organization.slug})
    assert_problem(refused, 403, "NOT_A_MEMBER")
    assert asked(stripe) == []


def test_backends_keys_and_nobody_buy_nothing(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    body = {"plan": "pro", "tenant_id": organization.slug}
    for role in ("service", "platform_admin", "anon"):
        with stack.client("staff|1", role=role, org=organization.id) as client:
            assert_problem(client.post(PATH, json=body), 403, "ROLE_REQUIRED")
    with stack.client(organization["owner"].subject, org=organization.id) as client:
        made = client.post("/api/v1/rpc/create_api_key", json={"name": "Shop", "scopes": ["usage:read"]})
        assert made.status_code == 200, made.text
        key = made.json()["key"]
    with httpx.Client(base_url=stack.gateway_url, trust_env=False) as client:
        with_key = client.post(PATH, json=body, headers={"Authorization": f"Bearer {key}"})
        assert_problem(with_key, 403, "SCOPE_REQUIRED")
        assert_problem(client.post(PATH, json=body), 401, "INVALID_TOKEN")
        forged = client.post(PATH, json=body, headers={"Authorization": "Bearer a.b.c"})
        assert_problem(forged, 401, "INVALID_TOKEN")
    assert asked(stripe) == []


def test_nobody_is_refused_before_a_body_is_taken_in(stack: RunningStack) -> None:
    """Bodies have so much memory together, and a small one may come over half a minute."""
    url = httpx.URL(stack.gateway_url)
    with socket.create_connection((url.host, url.port), timeout=5) as raw:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16000\r\n\r\n"
        raw.sendall(head.encode() + b"{")
        assert raw.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_plan_that_there_is_not_or_is_not_sold(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    assert_problem(buy(stack, organization, "platinum"), 404, "PLAN_NOT_FOUND")
    missing = buy(stack, organization, "firm")
    assert_problem(missing, 409, "STRIPE_PRICE_MISSING")
    assert "set_stripe_price" in missing.json()["hint"]
    assert asked(stripe) == []


def test_a_plan_that_was_agreed_with_one_is_not_for_others(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    write(
        stack,
        "insert into billing.plans (code, name, is_public) values ('agreed', 'Agreed', false) on conflict do nothing",
    )
    write(stack, "select stripe.set_price('agreed', 'price_pro_agreed')")
    assert_problem(buy(stack, organization, "agreed"), 404, "PLAN_NOT_FOUND")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"pro"',
        b'{"plan": "pro"}',
        b'{"tenant_id": "acme"}',
        b'{"plan": 7, "tenant_id": "acme"}',
        b'{"plan": null, "tenant_id": "acme"}',
        b'{"plan": "pro", "tenant_id": "acme", "cuopon": "HALF"}',
        b'{"plan": "pro", "tenant_id": "acme", "coupon": 1}',
        b'{"plan": "pro\\u0000", "tenant_id": "acme"}',
        b'{"plan": "pro", "tenant_id": "\\ud800"}',
        b'{"plan": "pro", "tenant_id": ' + b"[" * 5000,
        b"\xff\xfe",
    ],
    ids=range(14),
)
def test_what_is_no_order_is_refused(
    stack: RunningStack, stripe: StripeServer, organization: Organization, body: bytes
) -> None:
    with stack.client(organization["owner"].subject) as client:
        answer = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, 400, "INVALID_BODY")
    assert asked(stripe) == []


@pytest.mark.parametrize("coupon", ["HALF\x00", "half off", "a" * 201, "../coupons", "promo&x=1"])
def test_what_is_no_coupon_is_refused(
    stack: RunningStack, stripe: StripeServer, organization: Organization, coupon: str
) -> None:
    assert_problem(buy(stack, organization, coupon=coupon), 400, "INVALID_BODY")
    assert asked(stripe) == []


def test_what_is_too_large_or_no_json_is_refused(stack: RunningStack, organization: Organization) -> None:
    with stack.client(organization["owner"].subject) as client:
        large = client.post(PATH, json={"plan": "pro", "tenant_id": "x" * 20_000})
        assert_problem(large, 413, "BODY_TOO_LARGE")
        form = client.post(PATH, data={"plan": "pro", "tenant_id": organization.slug})
        assert_problem(form, 415, "UNSUPPORTED_MEDIA_TYPE")
        assert_problem(client.get(PATH), 405, "METHOD_NOT_ALLOWED")


def test_a_coupon_that_stripe_does_not_know_is_its_to_refuse(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    answer = buy(stack, organization, coupon="WHOLE")
    assert_problem(answer, 502, "STRIPE_REFUSED")
    assert "WHOLE" in answer.json()["message"]
    assert read(stack, "select count(*) from stripe.checkout_sessions where organization_id = %s", organization.id) == 0


def test_it_is_in_the_audit_log(stack: RunningStack, organization: Organization) -> None:
    url = buy(stack, organization).json()["checkout_url"]
    buy(stack, organization)
    with stack.database.connect() as superuser:
        [entry] = [one for one in entries(superuser, organization.id) if one.action == "checkout.created"]
    assert (entry.actor_type, entry.actor_id) == ("user", str(organization["owner"].id))
    assert entry.email == organization["owner"].email
    assert entry.target_id == url.rpartition("/")[2]
    assert entry.after == {"plan": "pro"}
    assert entry.request_id


def test_without_a_key_it_is_said_so(
    open_stack: OpenStack, make_organization: MakeOrganization, stripe: StripeServer
) -> None:
    with open_stack() as stack:
        organization = make_organization(stack.database)
        answer = buy(stack, organization)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert "STRIPE_SECRET_KEY" in said.pop("banner")
        assert said == {
            "success": False,
            "configured": False,
            "checkout_url": None,
            "test_mode": None,
            "publishable_key": None,
        }
        assert buy(stack, organization, "firm").json()["configured"] is False
        # Who may not, may not; what there is not, there is not.
        assert_problem(buy(stack, organization, who="admin"), 403, "ROLE_REQUIRED")
        assert_problem(buy(stack, organization, "platinum"), 404, "PLAN_NOT_FOUND")
        with stack.client(organization["owner"].subject) as client:
            link = client.get("/billing/portal_link", params={"tenant_id": organization.slug})
            assert link.status_code == 200, link.text
            told = link.json()
            assert "STRIPE_SECRET_KEY" in told.pop("banner")
            assert told == {"success": False, "configured": False, "portal_url": None, "test_mode": None}
        with stack.client(organization["admin"].subject) as client:
            link = client.get("/api/billing/portal_link", params={"tenant_id": organization.slug})
            assert_problem(link, 403, "ROLE_REQUIRED")


def test_each_request_is_one_of_the_rate_limit(
    open_stack: OpenStack, make_organization: MakeOrganization, stripe: StripeServer
) -> None:
    """Stripe takes so many requests a second of all our tenants together."""
    with open_stack(tier_rate_limits='{"starter": {"api": 2}}') as stack:
        organization = make_organization(stack.database)
        answers = [buy(stack, organization) for _ in range(4)]
        assert answers[0].status_code == 200, answers[0].text
        assert_problem(answers[-1], 429, "RATE_LIMITED")
        assert answers[-1].headers["Retry-After"]
