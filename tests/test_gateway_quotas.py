"""A hard quota of requests: exactly so many are forwarded, whoever asks and however many at once. What is answered
without being billed uses none up, and what is refused is neither forwarded nor billed.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime

import httpx
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.limited import BILLED, FREE, at_once
from tests.observe import assert_problem, database_away, eventually, metered_ids, wait_until_shipped
from tests.usage import value

FEATURE = "requests"


def give_quota(
    stack: RunningStack,
    organization: Organization,
    limit: int,
    enforcement: str = "hard",
    kind: str = "limit_per_period",
) -> None:
    with stack.database.connect() as superuser:
        superuser.execute(
            """
            insert into billing.entitlement_overrides (
              organization_id, feature, kind, limit_value, enforcement, meter_code, created_by
            )
            values (%(id)s, %(feature)s, %(kind)s, %(limit)s, %(enforcement)s, 'api.request', 'staff')
            on conflict (organization_id, feature) do update set limit_value = %(limit)s
            """,
            {
                "id": organization.id,
                "feature": FEATURE,
                "kind": kind,
                "limit": limit,
                "enforcement": enforcement,
            },
        )


def granted(stack: RunningStack, organization: Organization) -> int:
    with stack.database.connect() as superuser:
        return int(
            value(
                superuser,
                "select coalesce(sum(granted), 0) from billing.quota_counters where organization_id = %s",
                organization.id,
            )
        )


def client_of(stack: RunningStack, organization: Organization, role: str = "owner") -> httpx.Client:
    return stack.client(organization[role].subject, org=organization.id)


@pytest.fixture
def firm(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


def test_exactly_so_many_are_forwarded_at_32_connections(stack: RunningStack, firm: Organization) -> None:
    limit = 50
    give_quota(stack, firm, limit)
    with ExitStack() as open_clients:
        clients = [open_clients.enter_context(client_of(stack, firm)) for _ in range(32)]
        answers = at_once(clients, 3, BILLED)
    good = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert (len(good), len(refused)) == (limit, 3 * 32 - limit)
    for answer in refused:
        assert_problem(answer, 402, "QUOTA_EXCEEDED")
        details = json.loads(answer.json()["details"])
        assert {name: details[name] for name in ("feature", "limit", "used", "asked")} == {
            "feature": FEATURE,
            "limit": limit,
            "used": limit,
            "asked": 1,
        }
        assert datetime.fromisoformat(details["resets_at"]).day == 1
    assert granted(stack, firm) == limit
    wait_until_shipped(stack.state)
    assert len(metered_ids(stack, firm.id)) == limit  # the others are not billed


def test_what_is_refused_was_never_done(stack: RunningStack, firm: Organization) -> None:
    give_quota(stack, firm, 1)
    with client_of(stack, firm) as client:
        statuses = [client.post("/api/v1/cases", json={"title": title}).status_code for title in ("one", "two")]
    assert statuses == [201, 402]
    with stack.database.connect() as superuser:
        titles = superuser.execute("select title from app.cases where organization_id = %s", [firm.id]).fetchall()
    assert titles == [("one",)]


def test_what_is_not_billed_uses_up_none(stack: RunningStack, firm: Organization) -> None:
    give_quota(stack, firm, 1)
    with client_of(stack, firm, "viewer") as viewer, client_of(stack, firm) as owner:
        for _ in range(3):
            assert viewer.post("/api/v1/cases", json={"title": "no"}).status_code == 403
            assert owner.get(FREE).status_code == 200
            assert owner.options("/api/v1/cases").status_code == 200
        assert granted(stack, firm) == 0
        assert owner.get(BILLED).status_code == 200
        assert owner.get(BILLED).status_code == 402
        assert owner.get(FREE).status_code == 200


def test_what_the_gateway_refuses_and_bills_uses_up_the_quota(stack: RunningStack, firm: Organization) -> None:
    give_quota(stack, firm, 3)
    with client_of(stack, firm) as owner:
        answers = [owner.get("/api/v1/cases?title=eq.%ff") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [400] * 3 + [402] * 3
    assert granted(stack, firm) == 3
    wait_until_shipped(stack.state)
    assert len(metered_ids(stack, firm.id)) == 3


def test_what_cannot_be_answered_uses_up_none(stack: RunningStack, firm: Organization) -> None:
    give_quota(stack, firm, 1)
    with client_of(stack, firm) as owner:
        stack.stop("postgrest")
        try:
            assert_problem(owner.get(BILLED), 503, "POSTGREST_UNAVAILABLE")
        finally:
            stack.start("postgrest")
        assert granted(stack, firm) == 0
        assert owner.get(BILLED).status_code == 200


def test_with_postgres_away_nobody_knows(stack: RunningStack, firm: Organization) -> None:
    give_quota(stack, firm, 10)
    with client_of(stack, firm) as owner:
        assert owner.get(BILLED).status_code == 200
        with database_away(stack.database):
            assert_problem(owner.get(BILLED), 503, "DATABASE_UNAVAILABLE")
        assert eventually(lambda: owner.get(BILLED).status_code, lambda status: status == 200) == 200


def test_only_hard_quotas_of_a_period_count(stack: RunningStack, firm: Organization) -> None:
    give_quota(stack, firm, 1, "soft")
    with client_of(stack, firm) as owner:
        assert {owner.get(BILLED).status_code for _ in range(3)} == {200}
    assert granted(stack, firm) == 0


def test_a_quota_that_is_new_or_higher_counts_within_seconds(stack: RunningStack, firm: Organization) -> None:
    def status(wanted: int) -> int:
        found: int = eventually(lambda: owner.get(BILLED).status_code, lambda status: status == wanted, seconds=30)
        return found

    with client_of(stack, firm) as owner:
        assert owner.get(BILLED).status_code == 200
        give_quota(stack, firm, 0)
        assert status(402) == 402
        give_quota(stack, firm, 1_000_000)
        assert status(200) == 200


def test_a_key_uses_up_what_its_organization_has(stack: RunningStack, firm: Organization) -> None:
    give_quota(stack, firm, 2)
    with client_of(stack, firm) as owner:
        made = owner.post("/api/v1/rpc/create_api_key", json={"name": "one", "scopes": ["data:read"]})
        headers = {"Authorization": f"Bearer {made.json()['key']}"}
        with httpx.Client(base_url=stack.gateway_url, headers=headers, timeout=60, trust_env=False) as service:
            assert [service.get(BILLED).status_code for _ in range(3)] == [200, 200, 402]
        assert owner.get(BILLED).status_code == 402


def test_who_hangs_up_before_an_answer_uses_up_none(stack: RunningStack, firm: Organization) -> None:
    give_quota(stack, firm, 1)
    with stack.database.connect() as superuser, client_of(stack, firm) as owner:
        with superuser.transaction():
            superuser.execute("lock table app.cases in access exclusive mode")
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(owner.get, BILLED, timeout=5)
                assert eventually(lambda: granted(stack, firm), lambda taken: taken == 1) == 1
                with pytest.raises(httpx.ReadTimeout):
                    waiting.result(30)
            assert eventually(lambda: granted(stack, firm), lambda taken: taken == 0) == 0
        assert owner.get(BILLED).status_code == 200
