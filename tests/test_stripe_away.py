"""Stripe hangs, fails, answers nonsense, or is not there: whoever asks is told so, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from api.stripe import fixtures
from api.stripe.client import FAILURES_TO_OPEN, Stripe, StripeAway, StripeBusy, StripeDenied, StripeRefused
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, eventually
from tests.stripe_inbox import changed, hearing
from tests.stripe_server import StripeServer, stripe_server
from tests.test_metrics import scrape
from tests.usage import value

KEY = "sk_test_very_secret"
SECRET = "whsec_of_the_tests"
HANG = b"hang"

Answer = Callable[[bytes], bytes]


def said(status: int, body: object, **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + content


def refusal(status: int, **error: object) -> bytes:
    return said(status, {"error": {"message": "no", "type": "invalid_request_error", **error}})


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that says exactly this to each request, and a list of what it was asked."""
    asked: list[bytes] = []
    serving: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        try:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            content = answer(asked[-1])
            if content == HANG:
                await reader.read()  # until whoever asks has hung up
            writer.write(content)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        await asyncio.gather(*(task for task in serving if task is not None))


async def ask(stripe: Stripe) -> Any:
    return await stripe.ask(lambda s: s.v1.customers.retrieve_async("cus_1"))


def told(answer: bytes, seconds: float = 30) -> Exception:
    """How a call ends that is answered like that."""

    async def run() -> Exception:
        async with answering(lambda _: answer) as (url, _):
            stripe = Stripe(KEY, url, call_seconds=seconds)
            try:
                await ask(stripe)
            except Exception as error:
                return error
            finally:
                await stripe.close()
        raise AssertionError("it was taken for an answer")

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (HANG, StripeAway),
        (b"", StripeAway),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", StripeAway),
        (b"SSH-2.0-OpenSSH\r\n\r\n", StripeAway),
        (said(200, b"<html>"), StripeAway),
        (said(200, b"\xff\xfe"), StripeAway),
        (said(200, b"[]"), StripeAway),
        (said(200, b"null"), StripeAway),
        (said(200, b"7"), StripeAway),
        (said(500, {"error": {"message": "ours", "type": "api_error"}}), StripeAway),
        (said(503, b"<html>"), StripeAway),
        (said(302, b"", Location="http://127.0.0.1:9/"), StripeAway),
        (said(404, b"<html>no such page</html>"), StripeAway),
        (said(403, b"blocked by a proxy"), StripeAway),
        (said(400, {"error": "text"}), StripeAway),
        (said(400, {"error": {"message": 5}}), StripeRefused),
        (said(400, ["error"]), StripeAway),
        (refusal(400, code="parameter_unknown"), StripeRefused),
        (refusal(402, type="card_error", code="card_declined"), StripeRefused),
        (refusal(404, code="resource_missing"), StripeRefused),
        (refusal(400, type="idempotency_error"), StripeRefused),
        (refusal(401), StripeDenied),
        (refusal(403), StripeDenied),
        (refusal(409, type="idempotency_error", code="idempotency_key_in_use"), StripeBusy),
        (refusal(429, code="rate_limit"), StripeBusy),
        (said(429, b"slow down"), StripeBusy),
    ],
    ids=range(26),
)
def test_there_are_four_ways_to_fail(answer: bytes, kind: type[Exception]) -> None:
    assert type(told(answer, seconds=0.5 if answer == HANG else 30)) is kind


def test_an_answer_that_drips_is_not_waited_for() -> None:
    """Each read comes in time, and the whole never does."""

    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            try:
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.05)
            except OSError:
                writer.close()
                is_over.set()

        is_over = asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        stripe = Stripe(KEY, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", call_seconds=0.5)
        with pytest.raises(StripeAway, match="no answer within"):
            await ask(stripe)
        await stripe.close()
        await is_over.wait()
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [("7", 7.0), ("0", 0.0), ("999999999999", 3600.0), ("soon", 1.0), ("-5", 1.0), ("1e9", 1.0)],
)
def test_how_long_to_leave_it_alone_is_what_it_says(retry_after: str, pause: float) -> None:
    error = told(said(429, {"error": {"message": "x", "code": "rate_limit"}}, Retry_After=retry_after))
    assert isinstance(error, StripeBusy)
    assert error.pause == pause


def test_what_it_refuses_is_told_with_its_code() -> None:
    error = told(refusal(404, message="No such customer: 'cus_1'", code="resource_missing"))
    assert isinstance(error, StripeRefused)
    assert (str(error), error.status, error.code) == ("No such customer: 'cus_1'", 404, "resource_missing")
    nameless = told(refusal(400, type="idempotency_error"))
    assert isinstance(nameless, StripeRefused)
    assert nameless.code == "idempotency_error"


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
def test_no_secret_is_in_what_is_told(status: int) -> None:
    text = f"Invalid API Key provided: {KEY}, or rk_live_abc or sk_live_****1234 or whsec_x"
    error = told(said(status, {"error": {"message": text, "type": "invalid_request_error"}}))
    for secret in (KEY, "very_secret", "rk_live", "sk_live", "1234", "whsec"):
        assert secret not in str(error)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000_000.0]
    monkeypatch.setattr("purgatory.domain.model.time", SimpleNamespace(time=lambda: now[0]))
    return now


def test_who_does_not_answer_is_not_asked(clock: list[float]) -> None:
    async def run() -> None:
        answers = [said(500, {"error": {"message": "ours"}})]
        async with answering(lambda _: answers[0]) as (url, asked):
            stripe = Stripe(KEY, url)
            for _ in range(FAILURES_TO_OPEN):
                with pytest.raises(StripeAway, match="ours"):
                    await ask(stripe)
            for _ in range(20):
                with pytest.raises(StripeAway, match="has not answered for a while"):
                    await ask(stripe)
            assert len(asked) == FAILURES_TO_OPEN
            assert outcomes(stripe) == {"away": FAILURES_TO_OPEN, "spared": 20}
            assert is_away(stripe)

            # Later one is out to see, and the others do not wait for it.
            clock[0] += 3600
            with pytest.raises(StripeAway, match="ours"):
                await ask(stripe)
            with pytest.raises(StripeAway, match="has not answered for a while"):
                await ask(stripe)
            assert len(asked) == FAILURES_TO_OPEN + 1

            answers[0] = said(200, {"id": "cus_1", "object": "customer"})
            clock[0] += 3600
            assert (await ask(stripe)).id == "cus_1"
            assert (await ask(stripe)).id == "cus_1"
            assert not is_away(stripe)
            await stripe.close()

    asyncio.run(run())


def test_while_one_looks_the_others_do_not_wait(clock: list[float]) -> None:
    async def run() -> None:
        is_asked = asyncio.Event()

        def answer(_: bytes) -> bytes:
            if clock[0] < 1_003_600:
                return b""
            is_asked.set()
            return HANG

        async with answering(answer) as (url, asked):
            stripe = Stripe(KEY, url, call_seconds=5)
            for _ in range(FAILURES_TO_OPEN):
                with pytest.raises(StripeAway):
                    await ask(stripe)
            clock[0] += 3600
            looking = asyncio.create_task(ask(stripe))
            await is_asked.wait()
            for _ in range(10):
                with pytest.raises(StripeAway, match="has not answered for a while"):
                    await ask(stripe)
            assert not looking.done()
            with pytest.raises(StripeAway):
                await looking
            assert len(asked) == FAILURES_TO_OPEN + 1
            await stripe.close()

    asyncio.run(run())


@pytest.mark.parametrize("answer", [refusal(400), refusal(401), refusal(429), refusal(404)], ids=[400, 401, 429, 404])
def test_who_says_no_is_there(answer: bytes) -> None:
    async def run() -> None:
        async with answering(lambda _: answer) as (url, asked):
            stripe = Stripe(KEY, url)
            for _ in range(3 * FAILURES_TO_OPEN):
                with pytest.raises((StripeRefused, StripeBusy)):
                    await ask(stripe)
            assert len(asked) == 3 * FAILURES_TO_OPEN
            await stripe.close()

    asyncio.run(run())


def test_nothing_is_repeated_and_nothing_told_about_us() -> None:
    async def run() -> None:
        async with answering(lambda _: said(500, {"error": {"message": "ours"}})) as (url, asked):
            stripe = Stripe(KEY, url)
            for _ in range(2):
                with pytest.raises(StripeAway):
                    await ask(stripe)
            assert len(asked) == 2
            assert b"telemetry" not in asked[1].lower()
            await stripe.close()

    asyncio.run(run())


def outcomes(stripe: Stripe) -> dict[str, float]:
    [calls, _] = stripe.collect()
    return {one.labels["outcome"]: one.value for one in calls.samples if one.value}


def is_away(stripe: Stripe) -> bool:
    [_, away] = stripe.collect()
    return bool(away.samples[0].value)


@pytest.fixture(scope="module")
def server() -> Iterator[StripeServer]:
    with stripe_server() as made:
        made.put(fixtures.price("price_pro"))
        yield made


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack, server: StripeServer) -> Iterator[RunningStack]:
    with open_stack(
        stripe_secret_key=SecretStr(server.key),
        stripe_webhook_secret=SecretStr(SECRET),
        stripe_api_base=server.url,
    ) as running:
        with running.database.connect() as superuser:
            superuser.execute("select stripe.set_price('pro', 'price_pro')")
        yield running


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


def buy(client: httpx.Client, organization: Organization) -> httpx.Response:
    body = {"plan": "pro", "tenant_id": organization.slug}
    return client.post("/api/billing/create_checkout_session", json=body)


def test_while_stripe_is_away_tenants_notice_nothing(
    stack: RunningStack, server: StripeServer, organization: Organization, make_organization: MakeOrganization
) -> None:
    subscriber = make_organization(stack.database, roles=("owner",))
    customer = f"cus_{subscriber.id.hex}"
    server.put(fixtures.customer(f"{customer}_of_another"))
    server.fail(kind="close", times=None)
    with (
        stack.client(organization["owner"].subject, org=organization.id) as owner,
        stack.client("backend", role="service", org=organization.id) as backend,
        hearing(stack) as stripe,
    ):
        stripe.superuser.execute("select stripe.link(%s, %s, false)", [subscriber.id, customer])
        stripe.superuser.execute("select stripe.link(%s, %s, false)", [organization.id, f"{customer}_of_another"])
        stripe.superuser.execute("select stripe.ask_for('subscription', 'sub_away')")
        for number in range(2 * FAILURES_TO_OPEN):
            assert_problem(buy(owner, organization), 503, "STRIPE_UNAVAILABLE")
            portal = owner.get("/api/billing/portal_link", params={"tenant_id": organization.slug})
            assert_problem(portal, 503, "STRIPE_UNAVAILABLE")
            assert portal.headers["Retry-After"]

            assert owner.post("/api/v1/cases", json={"title": f"Case {number}"}).status_code == 201
            assert owner.get("/api/v1/cases").status_code == 200
            assert owner.get(f"/api/billing/usage-summary/{organization.slug}").status_code == 200
            sent = backend.post("/v1/events", json=[{"id": f"{customer}-{number}", "event_type": "api.request"}])
            assert sent.status_code == 200, sent.text
            assert stripe.outcome(changed(customer, "active" if number % 2 else "past_due")) in ("applied", "stale")
            assert owner.get("/health").status_code == 200
        assert len(server.requests("/v1/checkout")) <= FAILURES_TO_OPEN
        found = scrape(stack)
        assert found["goldleaves_stripe_away", frozenset()] == 1
        assert found["goldleaves_stripe_calls_total", frozenset({("outcome", "spared")})] > 0
        assert value(stripe.superuser, "select count(*) from stripe.refetches where object_id = 'sub_away'") == 1
        assert value(stripe.superuser, "select count(*) from stripe.checkout_sessions") == 0

        server.mend()
        bought = eventually(lambda: buy(owner, organization), lambda answer: answer.status_code != 503)
        assert bought.status_code == 200, bought.text


def test_no_log_has_a_key(stack: RunningStack, server: StripeServer, organization: Organization) -> None:
    server.mend()
    with stack.client(organization["owner"].subject) as owner:
        answered = eventually(lambda: buy(owner, organization), lambda answer: answer.status_code != 503)
        assert answered.status_code == 200, answered.text
        server.fail(path="/v1/checkout", kind="status", status=401)
        refused = owner.post(
            "/api/billing/create_checkout_session", json={"plan": "pro", "tenant_id": organization.slug, "coupon": "A"}
        )
        assert_problem(refused, 502, "STRIPE_REFUSED")
    for log in (stack.state.root / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert server.key not in text
        assert SECRET not in text
