"""GET /api/billing/plans: what can be had, for everybody, with what caches need to know."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from api.plans import CACHING
from tests.conftest import MakeOrganization
from tests.harness import RunningStack
from tests.observe import assert_problem, metered_since

PLANS = "/api/billing/plans"


@pytest.fixture(scope="module")
def nobody(stack: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.gateway_url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def staff(stack: RunningStack) -> Iterator[httpx.Client]:
    with stack.client("staff", role="platform_admin") as client:
        made = client.post("/api/v1/rpc/create_plan", json={"code": "acme", "name": "Acme", "is_public": False})
        assert made.status_code == 200, made.text
        yield client


@pytest.mark.usefixtures("staff")
@pytest.mark.parametrize("path", [PLANS, "/billing/plans"])
def test_plans_are_public(nobody: httpx.Client, path: str) -> None:
    answer = nobody.get(path)
    assert answer.status_code == 200
    assert [plan["code"] for plan in answer.json()] == ["starter", "pro", "firm"]
    assert answer.json() == nobody.get("/api/v1/plans").json()
    assert {price["meter"] for price in answer.json()[0]["prices"]} >= {"api.request", "doc.upload", "doc.processed"}
    assert answer.headers["Cache-Control"] == CACHING["Cache-Control"]
    assert "Authorization" in answer.headers.get_list("Vary", split_commas=True)
    assert nobody.get(path, params={"code": "eq.pro", "select": "code"}).json() == [{"code": "pro"}]


def test_who_knows_them_is_told_so(nobody: httpx.Client, staff: httpx.Client) -> None:
    etag = nobody.get(PLANS).headers["ETag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        unchanged = nobody.get(PLANS, headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", etag)
    assert nobody.get(PLANS, headers={"If-None-Match": '"x"'}).status_code == 200
    staff.post("/api/v1/rpc/set_plan_feature", json={"plan": "pro", "feature": "sso"})
    changed = nobody.get(PLANS, headers={"If-None-Match": etag})
    assert changed.status_code == 200 and changed.headers["ETag"] != etag


def test_head_has_no_body(nobody: httpx.Client) -> None:
    answer = nobody.head(PLANS)
    assert (answer.status_code, answer.content) == (200, b"")


def test_staff_sees_all_of_them(staff: httpx.Client, nobody: httpx.Client) -> None:
    assert [plan["code"] for plan in staff.get(PLANS).json()] == ["starter", "pro", "firm", "acme"]
    assert "acme" not in nobody.get(PLANS).text


def test_refusals_have_the_one_shape(nobody: httpx.Client) -> None:
    assert_problem(nobody.post(PLANS, json={}), 405, "METHOD_NOT_ALLOWED")
    assert_problem(nobody.get("/api/billing/pl%61ns"), 404, "ROUTE_NOT_FOUND")
    assert_problem(nobody.get("/api/billing/plans/pro"), 404, "ROUTE_NOT_FOUND")
    assert_problem(nobody.get(PLANS, headers={"Authorization": "Bearer none"}), 401, "INVALID_TOKEN")
    unread = nobody.get(PLANS, params={"nothing": "eq.1"})
    assert unread.status_code == 400 and unread.json()["code"] == "42703"
    assert "Cache-Control" not in unread.headers


def test_amounts_come_as_they_were_written(staff: httpx.Client) -> None:
    """As a JSON number or as a text, no float is made of them on the way in or out."""
    for currency, amount in (("jpy", "123456789012345.123456789012"), ("eur", '"0.000000000001"')):
        body = f'{{"meter": "traffic.bytes", "currency": "{currency}", "unit_amount_cents": {amount}}}'
        made = staff.post("/api/v1/rpc/create_price", content=body, headers={"Content-Type": "application/json"})
        assert f'"unit_amount_cents":{amount.strip(chr(34))},' in made.text
        assert f'"unit_amount_cents": {amount.strip(chr(34))}' in staff.get(PLANS).text
    tiers = '{"meter": "traffic.bytes", "currency": "gbp", "model": "volume", "tiers": [{"unit_amount_cents": 1e-9}]}'
    made = staff.post("/api/v1/rpc/create_price", content=tiers, headers={"Content-Type": "application/json"})
    assert '"unit_amount_cents": 0.000000001' in made.text


def test_nobody_is_billed_for_looking(stack: RunningStack, make_organization: MakeOrganization) -> None:
    organization = make_organization(stack.database)
    with stack.client(organization["owner"].subject, org=organization.slug) as owner:
        assert owner.get(PLANS).status_code == 200
        assert metered_since(stack, owner, organization.id) == []
