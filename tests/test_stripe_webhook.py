"""POST /api/billing/stripe_webhook: whoever can sign is believed, whoever cannot leaves no trace, and what is answered
200 is stored.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from pydantic import SecretStr

from api.routes import STRIPE_WEBHOOK_ROUTES
from api.stripe.fixtures.signing import headers_of, signed
from api.stripe.webhook import BODIES_IN_MEMORY, BODY_SECONDS
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, database_away, eventually
from tests.stripe_inbox import NOW, PATH, SECRET, Stripe, changed, hearing, link
from tests.test_metrics import scrape
from tests.test_metrics import value as metric
from tests.usage import value

NEXT_SECRET = "whsec_that_comes_next"
MOST_BYTES = 1024 * 1024
TOLERANCE = 300


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    with open_stack(stripe_webhook_secret=SecretStr(f"{SECRET}, {NEXT_SECRET}")) as running:
        yield running


@pytest.fixture
def stripe(stack: RunningStack) -> Iterator[Stripe]:
    with hearing(stack) as made:
        yield made


@pytest.fixture(scope="module")
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


@pytest.fixture(scope="module")
def customer(stack: RunningStack, organization: Organization) -> str:
    return link(stack.database, organization.id)


def assert_refused(stripe: Stripe, answer: httpx.Response) -> None:
    assert_problem(answer, 400, "INVALID_SIGNATURE")


def test_an_event_is_stored_applied_and_answered(stripe: Stripe, customer: str, organization: Organization) -> None:
    event = changed(customer, "past_due", type="created")
    answer = stripe.send(event)
    assert (answer.status_code, answer.json()) == (
        200,
        {"received": True, "outcome": "applied", "message": "past_due"},
    )
    row = stripe.row(event["id"])
    assert row is not None
    assert (row["status"], row["organization_id"], row["attempts"]) == ("applied", str(organization.id), 1)
    assert row["settled_at"] is not None
    status = "select status from billing.subscription_phases where organization_id = %s order by starts_at desc limit 1"
    assert value(stripe.superuser, status, organization.id) == "past_due"
    again = stripe.send(event)
    assert (again.status_code, again.json()) == (
        200,
        {"received": True, "outcome": "duplicate", "message": "already processed"},
    )


def test_the_payload_is_kept_as_it_came(stripe: Stripe, customer: str) -> None:
    event = changed(customer) | {"of_a_version_to_come": [1.50, "ü", None]}
    stripe.outcome(event)
    kept = value(stripe.superuser, "select payload from stripe.webhook_events where id = %s", event["id"])
    assert kept == event


@pytest.mark.parametrize("path", STRIPE_WEBHOOK_ROUTES)
def test_every_path_takes_webhooks_and_only_by_post(stripe: Stripe, customer: str, path: str) -> None:
    assert stripe.send(changed(customer), path=path).json()["outcome"] in ("applied", "stale")
    assert_problem(stripe.http.get(path), 405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("secret", [SECRET, NEXT_SECRET], ids=["old", "new"])
def test_either_of_two_secrets_will_do(stripe: Stripe, customer: str, secret: str) -> None:
    assert stripe.send(changed(customer), secret=secret).status_code == 200


def test_one_good_signature_of_several_will_do(stripe: Stripe, customer: str) -> None:
    body, headers = signed(changed(customer), ["whsec_of_somebody_else", SECRET])
    assert stripe.http.post(PATH, content=body, headers=headers).status_code == 200


def test_who_cannot_sign_leaves_nothing(stripe: Stripe, customer: str) -> None:
    event = changed(customer)
    body, headers = signed(event, SECRET)
    good = headers["stripe-signature"]
    before = stripe.stored()
    assert_refused(stripe, stripe.send(event, secret="whsec_of_somebody_else"))
    assert_refused(stripe, stripe.http.post(PATH, content=body))
    assert_refused(stripe, stripe.http.post(PATH, content=body + b" ", headers=headers))
    assert_refused(stripe, stripe.http.post(PATH, content=b"", headers=headers))
    for bad in (
        "", "t", "t=", "v1=", ",", "=", good.replace("v1=", "v0="), good.replace("t=", "t=1"), f"t=x,{good}",
        good.upper(), good[:-1], f"{good}0", good.replace(",v1=", ",v1=v1="), "t=1,v1=" + "é" * 64,
        "t=" + "9" * 5000 + ",v1=00",
        f"t={int(time.time())},v1=", "x" * 40_000,
    ):  # fmt: skip
        answer = stripe.http.post(PATH, content=body, headers=[(b"stripe-signature", bad.encode("latin-1"))])
        assert_refused(stripe, answer)
    twice = [("stripe-signature", good), ("stripe-signature", good)]
    assert_problem(stripe.http.post(PATH, content=body, headers=twice), 400, "AMBIGUOUS_HEADER")
    assert stripe.stored() == before
    assert stripe.row(event["id"]) is None


def test_the_time_is_read_as_stripes_library_reads_it(stripe: Stripe, customer: str) -> None:
    body, headers = signed(changed(customer), SECRET)
    at, _, signature = headers["stripe-signature"].partition(",")
    for header in (f"{at}=9,{signature}", f"t= {at[2:]},{signature}", f"{signature},{at}", f"{signature},{at},t=x"):
        answer = stripe.http.post(PATH, content=body, headers={"stripe-signature": header})
        assert answer.status_code == 200, (header, answer.text)


@pytest.mark.parametrize("skew", [-TOLERANCE - 30, TOLERANCE + 30, -86400 * 365, 10**9])
def test_what_was_signed_at_another_time_is_refused(stripe: Stripe, customer: str, skew: int) -> None:
    event = changed(customer)
    assert_refused(stripe, stripe.send(event, at=int(time.time()) + skew))
    assert stripe.row(event["id"]) is None


@pytest.mark.parametrize("skew", [-TOLERANCE + 30, TOLERANCE - 30])
def test_clocks_may_differ_by_minutes(stripe: Stripe, customer: str, skew: int) -> None:
    assert stripe.send(changed(customer), at=int(time.time()) + skew).status_code == 200


def test_whoever_signs_needs_no_token_and_a_bad_one_does_no_harm(stripe: Stripe, customer: str) -> None:
    for authorization in ("Bearer nonsense", "Bearer gl_test_nonsense", "Basic eA==", ""):
        body, headers = signed(changed(customer), SECRET)
        headers |= {"Authorization": authorization, "X-Organization-ID": "nobody"}
        assert stripe.http.post(PATH, content=body, headers=headers).status_code == 200


def test_webhooks_are_nobodys_usage(
    stack: RunningStack, stripe: Stripe, customer: str, organization: Organization
) -> None:
    """The traffic of nobody whom we know is the platform's."""
    stripe.outcome(changed(customer))
    of_the_organization = "select count(*) from metering.usage_events where organization_id = %s and source = 'gateway'"
    # Records are shipped in the order in which they were made.
    marker = "select count(*) from metering.usage_events where dimensions ->> 'endpoint' = %s"
    assert eventually(lambda: value(stripe.superuser, marker, PATH), bool)
    assert value(stripe.superuser, of_the_organization, organization.id) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"{", b"null", b"[]", b"1", b'"evt"', b"{}", b'{"id": "evt_1"}', b'{"id": "evt_1", "type": "a"}',
        b'{"id": "evt_1", "type": "a", "created": "yesterday"}', b'{"id": "evt_1", "type": "a", "created": 1e300}',
        b'{"id": "evt 1", "type": "a", "created": 1750000000}', b'{"id": "", "type": "a", "created": 1750000000}',
        b'{"id": 1, "type": "a", "created": 1750000000}', b'{"id": "evt_\\u0000", "type": "a", "created": 1750000000}',
        b'{"id": "evt_1", "type": "a", "created": 1750000000, "x": "\\ud800"}',
        b'{"id": "evt_1", "type": "a", "created": 1750000000, "x": "\\u0000"}',
        b'{"id": "evt_1", "type": "a", "created": 1750000000, "x": "\x00"}',
        b'{"id": "evt_1", "type": "a", "created": 1750000000, "x": 1e400000}', b"[" * 100_000, b'{"a":' * 100_000,
    ],
    ids=lambda body: body[:70].decode("latin-1").encode("unicode_escape").decode(),
)  # fmt: skip
def test_what_is_signed_and_no_event_is_refused_and_not_stored(stripe: Stripe, body: bytes) -> None:
    before = stripe.stored()
    assert_problem(stripe.post(body), 400, "INVALID_BODY")
    assert stripe.stored() == before


def test_what_is_no_utf_8_cannot_be_signed(stripe: Stripe) -> None:
    assert_refused(stripe, stripe.post(b'{"id": "\xff"}'))


def padded(event: dict[str, object], size: int) -> bytes:
    body = json.dumps(event | {"padding": ""}).encode()
    return body.replace(b'"padding": ""', b'"padding": "' + b"x" * (size - len(body)) + b'"')


@pytest.mark.parametrize("is_chunked", [False, True], ids=["whole", "in_chunks"])
def test_a_megabyte_is_the_most(stripe: Stripe, customer: str, is_chunked: bool) -> None:
    def post(body: bytes) -> httpx.Response:
        headers = headers_of(body.decode(), SECRET)
        return stripe.http.post(PATH, content=iter([body]) if is_chunked else body, headers=headers)

    largest = padded(changed(customer), MOST_BYTES)
    assert len(largest) == MOST_BYTES
    assert post(largest).status_code == 200
    too_large = changed(customer)
    assert_problem(post(padded(too_large, MOST_BYTES + 1)), 413, "BODY_TOO_LARGE")
    assert stripe.row(str(too_large["id"])) is None


def test_who_cannot_sign_and_holds_on_keeps_no_event_out(open_stack: OpenStack) -> None:
    """A body that came fast may take its time otherwise: of many at once all the memory there is for bodies is full."""
    request = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nStripe-Signature: t={int(time.time())},v1={'0' * 64}\r\n"
    request += f"Content-Length: {MOST_BYTES}\r\n\r\n"
    with open_stack(stripe_webhook_secret=SecretStr(SECRET)) as stack, hearing(stack) as stripe, ExitStack() as held:
        url = httpx.URL(stack.gateway_url)
        # Large ones, and small ones for what they leave: who finds no room is sent away, and gives back what it had.
        for size in [MOST_BYTES - 1] * (BODIES_IN_MEMORY - 1) + [65_000] * 18 + [500] * 150:
            raw = held.enter_context(socket.create_connection((url.host, url.port)))
            raw.sendall(request.encode() + b" " * size)
        answer = eventually(
            lambda: stripe.send(changed("cus_1")), lambda said: said.status_code == 200, seconds=BODY_SECONDS + 5
        )
        assert answer.status_code == 200, answer.text
        held.close()
        assert stripe.outcome(changed("cus_1")) == "unlinked"


def test_what_nothing_is_made_of_is_stored_and_ignored(stripe: Stripe) -> None:
    event = {
        "id": "evt_of_nothing",
        "type": "radar.early_fraud_warning.created",
        "created": NOW,
        "data": {"object": {}},
    }
    assert stripe.outcome(event) == "ignored"
    assert stripe.outcome(event) == "duplicate"
    row = stripe.row("evt_of_nothing")
    assert row is not None and row["status"] == "ignored"


def test_an_event_of_an_unknown_customer_waits_until_it_is_linked(
    stack: RunningStack, stripe: Stripe, make_organization: MakeOrganization
) -> None:
    organization = make_organization(stack.database)
    event = changed("cus_of_nobody", "past_due", type="created")
    assert stripe.outcome(event) == "unlinked"
    assert stripe.outcome(event) == "unlinked", "it is no duplicate of what was never applied"
    stripe.superuser.execute("select stripe.link_customer(%s, 'cus_of_nobody', false, 'test')", [organization.id])
    stripe.superuser.execute("select stripe.apply_waiting('cus_of_nobody', true)")
    row = stripe.row(event["id"])
    assert row is not None and (row["status"], row["organization_id"]) == ("applied", str(organization.id))


@contextmanager
def noted_transactions(stripe: Stripe) -> Iterator[Callable[[], int]]:
    """In how many transactions events were stored meanwhile. Their xmin are those of subtransactions."""
    stripe.superuser.execute("""
        create table public.noted (id text, xid xid8);
        grant insert on public.noted to public;
        create function public.note() returns trigger language plpgsql as
          $$ begin insert into public.noted values (new.id, pg_current_xact_id()); return null; end $$;
        create trigger note after insert on stripe.webhook_events for each row execute function public.note();
    """)
    try:
        yield lambda: int(str(value(stripe.superuser, "select count(distinct xid) from public.noted")))
    finally:
        stripe.superuser.execute("drop function public.note() cascade; drop table public.noted")


def test_many_at_once_share_transactions_and_each_gets_its_own_answer(
    stack: RunningStack, stripe: Stripe, customer: str
) -> None:
    good = [changed(customer, at=NOW - 600 + number) for number in range(40)]
    with ThreadPoolExecutor(24) as pool, noted_transactions(stripe) as transactions:
        # Whoever is first holds up the others, which gather.
        with stack.database.connect(autocommit=False) as blocker:
            blocker.execute("lock table stripe.webhook_events in access exclusive mode")
            answers = [pool.submit(stripe.send, event) for event in (*good, *good)]
            garbage = [pool.submit(stripe.post, b'{"id": "evt_1"}') for _ in range(4)]
            waiting = (
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query ~ 'receive_events'"
            )
            assert eventually(lambda: value(stripe.superuser, waiting), bool)
            blocker.rollback()
        outcomes = [answer.result().json()["outcome"] for answer in answers]
        for one in garbage:
            assert_problem(one.result(), 400, "INVALID_BODY")
        assert outcomes.count("duplicate") == len(good)
        assert value(stripe.superuser, "select count(distinct id) from noted") == len(good)
        assert transactions() < len(good), "they shared transactions"


def test_who_closes_a_period_holds_up_nobody_else_and_what_it_holds_up_is_stored(
    stack: RunningStack, stripe: Stripe, make_organization: MakeOrganization, customer: str
) -> None:
    organization = make_organization(stack.database)
    theirs = link(stack.database, organization.id)
    lock = "select pg_advisory_xact_lock(billing.period_lock_class(), billing.period_lock_slot(%s))"
    held, applied = changed(theirs, "past_due", type="created"), changed(customer)
    with ThreadPoolExecutor(2) as pool, stack.database.connect(autocommit=False) as closing:
        closing.execute(lock, [organization.id])
        answer = pool.submit(stripe.send, held)
        assert stripe.outcome(applied) in ("applied", "stale")
        said = answer.result().json()
        assert (said["outcome"], said["message"].partition(":")[0]) == ("pending", "PERIOD_BUSY")
        row = stripe.row(held["id"])
        assert row is not None and (row["status"], row["attempts"]) == ("failed", 1)
        closing.rollback()
    # The worker does the rest.
    stripe.superuser.execute("update stripe.webhook_events set next_attempt_at = now() where status = 'failed'")
    assert eventually(lambda: (stripe.row(held["id"]) or {})["status"], "applied".__eq__) == "applied"


def test_without_postgres_stripe_is_asked_to_send_again(stack: RunningStack, stripe: Stripe, customer: str) -> None:
    event = changed(customer)
    with database_away(stack.database):
        assert_problem(stripe.send(event), 503, "DATABASE_UNAVAILABLE")
    with hearing(stack) as again:
        assert eventually(lambda: again.send(event).status_code, (200).__eq__) == 200
        assert again.row(event["id"]) is not None


def test_outcomes_are_counted(stack: RunningStack, stripe: Stripe, customer: str) -> None:
    def counted(outcome: str) -> float:
        return metric(scrape(stack), "stripe_events_total", outcome=outcome)

    event = changed(customer, at=NOW + 60)
    before = counted("applied"), counted("duplicate")
    stripe.outcome(event)
    stripe.outcome(event)
    assert (counted("applied"), counted("duplicate")) == (before[0] + 1, before[1] + 1)


def test_without_a_secret_nothing_is_believed(open_stack: OpenStack) -> None:
    with open_stack() as stack, hearing(stack) as stripe:
        answer = stripe.send(changed("cus_1"))
        assert_problem(answer, 503, "STRIPE_NOT_CONFIGURED")
        assert answer.headers["Retry-After"]
        assert stripe.stored() == 0
        assert not [name for name, _ in scrape(stack) if re.search("stripe_.*events", name)]


def test_events_of_the_other_mode_are_ignored(open_stack: OpenStack, make_organization: MakeOrganization) -> None:
    with open_stack(
        stripe_webhook_secret=SecretStr(SECRET), stripe_secret_key=SecretStr("sk_test_nothing"), stripe_api_base="http://127.0.0.1:9"
    ) as stack, hearing(stack) as stripe:  # fmt: skip
        customer = link(stack.database, make_organization(stack.database).id)
        assert stripe.outcome(changed(customer) | {"livemode": True}) == "ignored"
        assert value(stripe.superuser, "select count(*) from stripe.subscriptions") == 0
        assert stripe.outcome(changed(customer)) == "applied"


def test_whoever_is_held_up_with_a_customer_holds_up_no_others(
    stack: RunningStack, stripe: Stripe, make_organization: MakeOrganization
) -> None:
    """Its events are stored, and applied once whoever is at it is done."""
    theirs, others = (link(stack.database, make_organization(stack.database).id) for _ in range(2))
    held = [changed(theirs, "past_due", at=NOW - 50 + n, type="created" if n == 0 else "updated") for n in range(3)]
    with stack.database.connect(autocommit=False) as holder, ThreadPoolExecutor(len(held)) as pool:
        holder.execute("select stripe.lock_customer(%s)", [theirs])
        answers = [pool.submit(stripe.send, event) for event in held]
        time.sleep(0.3)
        began = time.monotonic()
        assert [stripe.outcome(changed(others, at=NOW - 50 + n)) for n in range(3)] == ["applied"] * 3
        assert time.monotonic() < began + 3
        for answer in answers:
            assert (answer.result().status_code, answer.result().json()["outcome"]) == (200, "pending")
        holder.rollback()
    waiting = "select count(*) from stripe.webhook_events where customer_id = %s and status in ('received', 'failed')"
    assert eventually(lambda: value(stripe.superuser, waiting, theirs), (0).__eq__) == 0
