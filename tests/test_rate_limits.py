"""So many requests a minute, an organization, by its plan: exact with many clients at once, told on each answer, and
whoever waits as long as they are told gets through.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import ceil
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.context import RequestContext
from api.errors import Problem
from api.rate_limits.counters import WINDOW_SECONDS, LocalCounters
from api.rate_limits.rate_limits import RateLimits
from api.rate_limits.tiers import TierRateLimits
from api.routes import NOWHERE
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.limited import BILLED, FREE, ask, at_once, make_limited
from tests.observe import assert_problem, eventually, wait_until_shipped
from tests.usage import value

STARTER, STRICTEST = 40, 3
TIERS = f'{{"starter": {{"api": {STARTER}}}, "pro": {{"api": {STRICTEST}}}}}'
LIMIT, REMAINING, RESET = "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"
PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def limited(open_stack: OpenStack) -> Iterator[RunningStack]:
    with open_stack(tier_rate_limits=TIERS, allowed_origins=PAGE) as stack:
        yield stack


def make_key(stack: RunningStack, organization: Organization) -> httpx.Client:
    with stack.client(organization["owner"].subject, org=organization.id) as owner:
        made = owner.post("/api/v1/rpc/create_api_key", json={"name": "one", "scopes": ["data:read"]})
    key = made.json()["key"]
    return httpx.Client(
        base_url=stack.gateway_url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
    )


def test_exactly_so_many_go_through_whoever_asks(limited: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_limited(make_organization, limited.database)
    clients = [make_key(limited, firm)]  # whose making was the first request
    clients += [limited.client(firm[role].subject, org=firm.slug) for role in ("owner", "viewer") for _ in range(4)]
    answers = at_once(clients, 7, "/api/v1/cases?select=id")
    for client in clients:
        client.close()

    good = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(good), len(refused)) == (STARTER - 1, len(answers) - STARTER + 1)
    assert sorted(int(answer.headers[REMAINING]) for answer in good) == list(range(STARTER - 1))
    assert {answer.headers[LIMIT] for answer in answers} == {str(STARTER)}
    assert all(1 <= int(answer.headers[RESET]) <= WINDOW_SECONDS for answer in answers)
    assert all("Retry-After" not in answer.headers for answer in good)
    for answer in refused:
        assert_problem(answer, 429, "RATE_LIMITED")
        assert answer.headers["Retry-After"] == answer.headers[RESET]
        assert answer.headers[REMAINING] == "0"
        assert f"Wait {answer.headers[RESET]} s" in answer.json()["hint"]
    other = make_limited(make_organization, limited.database, least=1)
    assert ask(limited, other).headers[REMAINING] == str(STARTER - 1)


def test_who_waits_as_told_gets_through(limited: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_limited(make_organization, limited.database, "pro", least=2, most=5)
    with limited.client(firm["owner"].subject, org=firm.id) as client:
        while (answer := client.get(FREE)).status_code == 200:
            pass
        time.sleep(int(answer.headers["Retry-After"]))
        again = client.get(FREE)
    assert again.status_code == 200
    assert again.headers[REMAINING] == str(STRICTEST - 1)


def test_each_request_of_a_tenant_counts(limited: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_limited(make_organization, limited.database)
    left = STARTER
    for path in (
        BILLED,
        "/api/v1/rpc/usage_summary",
        f"/api/billing/usage-summary/{firm.slug}",
        "/api/billing/preview-invoice",
        "/api/billing/preview-invoice.html",
        "/api/billing/plans",
        "/api/v1/nothing",
        "/api/v1/cases%00",
    ):
        left -= 1
        assert ask(limited, firm, path).headers[REMAINING] == str(left), path


def test_who_is_no_tenant_is_not_limited(limited: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_limited(make_organization, limited.database, "firm", least=0)
    assert LIMIT not in ask(limited, firm).headers  # its plan has no limit
    staff = limited.token("staff", role="platform_admin")
    service = limited.token("backend", role="service")
    organization = {"X-Organization-ID": str(firm.id)}
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
    with httpx.Client(base_url=limited.gateway_url, trust_env=False) as anybody:
        for answer in (
            anybody.get("/health"),
            anybody.get("/api/v1/plans"),
            anybody.get(BILLED),
            anybody.get("/api/v1/cases", headers={"Authorization": f"Bearer {staff}", **organization}),
            anybody.post("/v1/events", json=[], headers={"Authorization": f"Bearer {service}", **organization}),
            anybody.options(BILLED, headers=preflight),
        ):
            assert LIMIT not in answer.headers


def test_without_access_the_strictest_tier_holds(limited: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_limited(make_organization, limited.database, least=1)
    with limited.database.connect() as superuser:
        superuser.execute("select billing.start_subscription(%s, 'firm', 0, true, null)", [firm.id])
        superuser.execute("select billing.pause_subscription(%s, null)", [firm.id])
    assert ask(limited, firm).headers[LIMIT] == str(STRICTEST)


def test_a_change_of_plan_shows_by_itself(limited: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_limited(make_organization, limited.database, least=1)
    with limited.client(firm["owner"].subject, org=firm.id) as client, limited.database.connect() as superuser:
        assert client.get(FREE).headers[LIMIT] == str(STARTER)
        superuser.execute("update tenancy.organizations set plan = 'pro' where id = %s", [firm.id])
        assert eventually(lambda: client.get(FREE).headers[LIMIT], lambda limit: limit == str(STRICTEST), seconds=30)


def test_what_is_refused_is_traffic_and_never_billed(
    limited: RunningStack, make_organization: MakeOrganization
) -> None:
    firm = make_limited(make_organization, limited.database, "pro")
    names = [str(uuid4()) for _ in range(STRICTEST + 2)]
    statuses = [ask(limited, firm, BILLED, **{"X-Request-ID": name}).status_code for name in names]
    assert statuses == [200] * STRICTEST + [429] * 2
    wait_until_shipped(limited.state)
    with limited.database.connect() as superuser:
        metered = {
            name: value(
                superuser,
                """
                select array_agg(event_name || ' ' || (dimensions ->> 'status_code') order by event_name)
                from metering.usage_events where organization_id = %s and request_id = %s
                """,
                firm.id,
                name,
            )
            for name in names
        }
    good, refused = ["api.request 200", "traffic.bytes 200"], ["traffic.bytes 429"]
    assert list(metered.values()) == [good] * STRICTEST + [refused] * 2


def test_pages_may_read_what_is_left(limited: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_limited(make_organization, limited.database, "pro")
    answers = [ask(limited, firm, Origin=PAGE) for _ in range(STRICTEST + 1)]
    assert answers[-1].status_code == 429
    for answer in answers:
        exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
        assert {LIMIT, REMAINING, RESET, "Retry-After"} <= exposed
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def context() -> RequestContext:
    return RequestContext("r", False, NOWHERE)


@settings(max_examples=200, deadline=None)
@given(
    organization=st.uuids(),
    now=st.floats(min_value=1_700_000_000, max_value=4_000_000_000, allow_nan=False),
    waits=st.floats(min_value=0, max_value=120),
)
async def test_retry_after_is_never_too_short(organization: UUID, now: float, waits: float) -> None:
    clock = Clock(now)
    limits = RateLimits(TierRateLimits({"pro": 1}), LocalCounters(clock), clock)
    await limits.take(context(), organization, "pro")
    refused = context()
    with pytest.raises(Problem):
        await limits.take(refused, organization, "pro")
    retry_after = int(dict(refused.headers)[b"retry-after"])
    assert 1 <= retry_after <= WINDOW_SECONDS
    clock.now += retry_after + waits
    await limits.take(context(), organization, "pro")


async def test_counts_that_are_over_are_forgotten() -> None:
    clock = Clock(0)
    counters = LocalCounters(clock)
    for second in range(10 * WINDOW_SECONDS):
        clock.now = second
        for key in range(3):
            await counters.add(f"{key}/{second}")
    assert len(counters) <= 3 * 2 * WINDOW_SECONDS
    clock.now += ceil(WINDOW_SECONDS / 2)
    assert await counters.add(f"0/{10 * WINDOW_SECONDS - 1}") == 2  # its window may go on for so long
    clock.now += 5 * WINDOW_SECONDS
    assert await counters.add("new") == 1
    assert len(counters) == 1
