"""Usage arrives at Stripe exactly once: whoever is killed between sending and writing it down, whatever Stripe answers
instead. POST /api/billing/report-usage sends at once, for the provider alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr

from api.stripe import fixtures, reported
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.meters import roll_up_all
from tests.observe import assert_problem
from tests.stripe_server import StripeServer, stripe_server
from tests.usage import event, ingest, moment, value
from tests.usage_reports import accounted, link, posted, register, reports

PATH = "/api/billing/report-usage"
EVENTS = "/v1/billing/meter_events"
METER = "api.request"
SECONDS = 60.0


@pytest.fixture(scope="module")
def stripe() -> Iterator[StripeServer]:
    with stripe_server() as server:
        server.put(fixtures.meter("mtr_api.request", event_name=METER))
        yield server


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack, stripe: StripeServer) -> Iterator[RunningStack]:
    settings = {
        "stripe_secret_key": SecretStr(stripe.key),
        "stripe_webhook_secret": SecretStr(stripe.secret),
        "stripe_api_base": stripe.url,
    }
    with open_stack(**settings) as running:
        with running.database.connect() as superuser:
            register(superuser, METER)
        stripe.send_webhooks_to(f"{running.gateway_url}/webhooks/stripe")
        yield running


@pytest.fixture(autouse=True)
def well(stripe: StripeServer) -> None:
    stripe.mend()
    stripe.forget_requests()


@pytest.fixture
def organization(
    stack: RunningStack, stripe: StripeServer, make_organization: MakeOrganization
) -> Iterator[Organization]:
    made = make_organization(stack.database)
    with stack.database.connect() as superuser:
        stripe.put(fixtures.customer(link(superuser, made.id)))
    yield made
    with stack.database.connect() as superuser:  # so that it is not in the way of the next one
        superuser.execute("update stripe.customers set deleted_at = now() where organization_id = %s", [made.id])


def use(stack: RunningStack, organization: UUID, *events: dict[str, Any]) -> None:
    with stack.database.connect("sidecar") as connection:
        ingest(connection, events, organization)
        roll_up_all(connection)


def report(stack: RunningStack, organization: Organization | None = None) -> dict[str, Any]:
    with stack.client("staff", role="platform_admin", org=organization.id if organization else None) as client:
        answer = client.post(PATH)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def make_due(stack: RunningStack) -> None:
    """As if the time had passed for which whoever was killed had claimed them, or was to wait."""
    with stack.database.connect() as superuser:
        superuser.execute("update stripe.meter_event_reports set claimed_until = null, next_attempt_at = now()")


def report_all(stack: RunningStack, organization: Organization) -> None:
    until = time.monotonic() + SECONDS
    while report(stack, organization)["pending"]:
        assert time.monotonic() < until
        make_due(stack)
        time.sleep(0.1)


def wait_for(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.05)
    return found


def there(stripe: StripeServer, organization: Organization) -> dict[str, int]:
    customer = f"cus_{organization.id.hex}"
    return {
        one["identifier"]: int(one["payload"]["value"])
        for one in stripe.all("billing.meter_event")
        if one["payload"]["stripe_customer_id"] == customer
    }


def stored(stack: RunningStack, organization: Organization) -> list[dict[str, Any]]:
    with stack.database.connect() as superuser:
        return reports(superuser, organization.id)


def hours(n: int, quantity: int = 1) -> list[dict[str, Any]]:
    return [event(f"h{hour}-{quantity}", moment(hours=hour), quantity=quantity) for hour in range(n)]


def test_what_there_is_is_sent_at_once(stack: RunningStack, stripe: StripeServer, organization: Organization) -> None:
    use(stack, organization.id, event("a", quantity=5), event("b", moment(), quantity=2))
    said = report(stack, organization)
    banner = said.pop("banner")
    assert banner.startswith("Test mode")
    assert said == {
        "sent": 2,
        "units": {METER: 7},
        "pending": 0,
        "rejected": 0,
        "uncertain": 0,
        "configured": True,
        "test_mode": True,
        "invoice_mode": "stripe_meters",
    }
    assert sorted(there(stripe, organization).values()) == [2, 5]
    told = {one["identifier"]: one for one in stripe.all("billing.meter_event")}
    for one in stored(stack, organization):
        theirs = told[one["identifier"]]
        assert theirs["event_name"] == METER
        assert theirs["timestamp"] == int(one["happened_at"].timestamp())
        assert one["status"] == "acknowledged"
    with stack.database.connect() as superuser:
        assert posted(superuser, organization.id) == [1, 1]
    assert report(stack, organization)["sent"] == 0


def test_whoever_is_killed_before_writing_it_down_sends_it_again_as_the_same(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    use(stack, organization.id, event("a", quantity=9))
    stripe.fail(path=EVENTS, kind="hang", when="after")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: _without_answer(stack, organization))
        wait_for(lambda: there(stripe, organization))
        stack.kill()
        asked.result()
    (before,) = stored(stack, organization)
    assert (before["status"], before["attempts"]) == ("pending", 1)
    stack.start()
    assert report(stack, organization) | {"banner": ""} == report(stack, organization) | {"banner": ""}
    make_due(stack)
    said = report(stack, organization)
    assert said["pending"] == 0
    (after,) = stored(stack, organization)
    assert (after["status"], after["identifier"]) == ("acknowledged", before["identifier"])
    assert there(stripe, organization) == {after["identifier"]: 9}
    statuses = [one["status"] for one in stripe.requests(EVENTS)]
    assert statuses[-1] == 400, "Stripe said that it is there"


def _without_answer(stack: RunningStack, organization: Organization) -> None:
    with suppress(httpx.HTTPError), stack.client("staff", role="platform_admin", org=organization.id) as client:
        client.post(PATH)


def _have(stripe: StripeServer, several: Sequence[Organization], least: int) -> bool:
    return sum(len(there(stripe, one)) for one in several) >= least


def test_killed_again_and_again_in_the_middle_of_it(
    stack: RunningStack, stripe: StripeServer, make_organization: MakeOrganization
) -> None:
    several = [make_organization(stack.database, roles=("owner",)) for _ in range(5)]
    with stack.database.connect() as superuser:
        for one in several:
            stripe.put(fixtures.customer(link(superuser, one.id)))
    for one in several:
        use(stack, one.id, *[event(f"{n}", moment(hours=n / 10), quantity=n + 1) for n in range(40)])
    stripe.fail(path=EVENTS, kind="slow", milliseconds=20, times=None)
    for most in (1, 7, 12):
        with ThreadPoolExecutor(5) as pool:
            for one in several:
                pool.submit(_without_answer, stack, one)
            wait_for(partial(_have, stripe, several, most))
            stack.kill()
        stack.start()
        make_due(stack)
    stripe.mend()
    for one in several:
        report_all(stack, one)
    with stack.database.connect() as superuser:
        for one in several:
            assert sum(there(stripe, one).values()) == sum(range(1, 41))
            assert accounted(superuser, one.id, METER, moment()) == Decimal(sum(range(1, 41)))
            assert {r["status"] for r in reports(superuser, one.id)} == {"acknowledged"}
            assert posted(superuser, one.id) == [1] * 40


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 429, "retry_after": 1},
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 500, "when": "after"},
        {"kind": "close"},
        {"kind": "close", "when": "after"},
        {"kind": "duplicate"},
    ],
    ids=lambda fault: " ".join(str(part) for part in fault.values()),
)
def test_whatever_it_answers_instead(
    stack: RunningStack, stripe: StripeServer, organization: Organization, fault: dict[str, Any]
) -> None:
    use(stack, organization.id, event("a", quantity=3))
    stripe.fail(path=EVENTS, **fault)
    first = report(stack, organization)
    assert first["rejected"] == 0
    if fault["kind"] == "duplicate":
        assert first["sent"] == 1, "an identifier that is there counts"
        return
    assert (first["sent"], first["pending"]) == (0, 1)
    report_all(stack, organization)
    assert list(there(stripe, organization).values()) == [3]
    assert [one["status"] for one in stored(stack, organization)] == ["acknowledged"]


def test_what_it_refuses_waits_for_people(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    use(stack, organization.id, event("a", quantity=3))
    stripe.fail(path=EVENTS, kind="status", status=400, code="meter_event_invalid_value")
    said = report(stack, organization)
    assert (said["sent"], said["pending"], said["rejected"]) == (0, 0, 1)
    (rejected,) = stored(stack, organization)
    assert rejected["status"] == "rejected"
    assert rejected["last_error"]
    with stack.database.connect() as superuser:
        assert posted(superuser, organization.id) == [0]
    assert report(stack, organization)["sent"] == 0

    assert reported.resend(stack.database.migrator, organization.id, ["rejected"]) == 1
    done = asyncio.run(reported.report(stripe.key, stripe.url, stack.database.migrator, organization.id))
    assert (done.tally.sent, done.waiting.rejected) == (1, 0)
    assert list(there(stripe, organization).values()) == [3]
    assert [one["status"] for one in stored(stack, organization)] == ["canceled", "acknowledged"]
    with stack.database.connect() as superuser:
        assert posted(superuser, organization.id) == [1]
        entry = "select count(*) from audit.log where organization_id = %s and action = 'stripe_reports.resent'"
        assert value(superuser, entry, organization.id) == 1


def test_what_it_finds_wrong_later_comes_back_to_the_reports(
    stack: RunningStack, stripe: StripeServer, organization: Organization
) -> None:
    use(stack, organization.id, event("a", moment(), quantity=3), event("b", quantity=4))
    assert report(stack, organization)["sent"] == 2
    wrong = next(one["identifier"] for one in stored(stack, organization) if one["quantity"] == 4)
    stripe.report_errors({wrong: "There is no such customer."})
    found = wait_for(lambda: [one for one in stored(stack, organization) if one["status"] == "rejected"])
    assert [one["identifier"] for one in found] == [wrong]
    assert "There is no such customer." in found[0]["last_error"]

    assert reported.resend(stack.database.migrator, organization.id, ["rejected"]) == 1
    report_all(stack, organization)
    live = [one for one in stored(stack, organization) if one["status"] == "acknowledged"]
    assert sorted(one["quantity"] for one in live) == [3, 4]
    assert wrong not in {one["identifier"] for one in live}, "Stripe knows the old identifier, and would not count it"


def test_the_provider_alone_has_it_sent(
    stack: RunningStack, organization: Organization, make_organization: MakeOrganization
) -> None:
    for path in (PATH, "/billing/report-usage"):
        with stack.client("backend", role="service") as client:
            assert client.post(path, json={"tenant_id": organization.slug}).status_code == 200
            assert client.post(path, json={"tenant_id": str(organization.id)}).json()["configured"] is True
            assert_problem(client.post(path, json={"tenant_id": "nobody"}), 404, "ORGANIZATION_NOT_FOUND")
            assert_problem(client.post(path, json={"tenant": "x"}), 400, "INVALID_BODY")
            assert_problem(client.post(path, content=b"[" * 20_000), 413, "BODY_TOO_LARGE")
            other = make_organization(stack.database, roles=("owner",))
            header = {"X-Organization-ID": str(other.id)}
            assert_problem(
                client.post(path, json={"tenant_id": organization.slug}, headers=header), 400, "INVALID_BODY"
            )
        for member in organization.members.values():
            with stack.client(member.subject, org=organization.id) as client:
                assert_problem(client.post(path), 403, "ROLE_REQUIRED")
        assert_problem(httpx.post(f"{stack.gateway_url}{path}", trust_env=False), 401, "INVALID_TOKEN")


def test_without_a_key_it_says_so(open_stack: OpenStack) -> None:
    with open_stack() as stack, stack.client("staff", role="platform_admin") as client:
        answer = client.post(PATH)
        assert answer.status_code == 200
        said = answer.json()
        assert "STRIPE_SECRET_KEY" in said.pop("banner")
        assert said == {
            "sent": 0,
            "units": {},
            "pending": 0,
            "rejected": 0,
            "uncertain": 0,
            "configured": False,
            "test_mode": None,
            "invoice_mode": "local",
        }


def test_metrics_tell_what_waits(stack: RunningStack, stripe: StripeServer, organization: Organization) -> None:
    use(stack, organization.id, event("a", quantity=2))
    report(stack, organization)
    shown = httpx.get(f"{stack.gateway_url}/metrics", trust_env=False).text
    for name in ("pending", "rejected", "uncertain", "oldest_seconds"):
        assert f"goldleaves_stripe_reports_{name} " in shown
    assert 'goldleaves_stripe_report_attempts_total{outcome="sent"}' in shown
