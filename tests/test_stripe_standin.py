"""The stand-in for Stripe speaks its protocol, as its own SDK understands it, refuses what Stripe refuses, and fails
as it is told to. What other tests prove with it is worth no more than this.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest
import stripe

from api.stripe import fixtures
from tests.stripe_server import Json, StripeServer, stripe_server
from tests.webhook_receiver import Reply, application

HOUR, DAY = 3_600, 86_400

_number = count(1)


@pytest.fixture(scope="module")
def running() -> Iterator[StripeServer]:
    with stripe_server() as server:
        yield server


@pytest.fixture
def server(running: StripeServer) -> StripeServer:
    """It knows nothing, and nothing is to fail."""
    running.forget()
    running.set(ahead=0, meter_events_a_second=1_000, webhook_url=None)
    return running


@contextmanager
def client(server: StripeServer, key: str | None = None) -> Iterator[stripe.StripeClient]:
    http = stripe.HTTPXClient(timeout=2, allow_sync_methods=True)
    try:
        yield stripe.StripeClient(
            key or server.key, base_addresses={"api": server.url}, http_client=http, max_network_retries=0
        )
    finally:
        http.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def sdk(server: StripeServer) -> Iterator[stripe.StripeClient]:
    with client(server) as made:
        yield made


def make_meter(sdk: stripe.StripeClient, name: str = "api.request") -> Any:
    return sdk.v1.billing.meters.create(
        {"display_name": name, "event_name": name, "default_aggregation": {"formula": "sum"}}
    )


def report(sdk: stripe.StripeClient, identifier: str, value: object = 5, customer: str = "cus_1", **more: Any) -> Any:
    payload = {"stripe_customer_id": customer, "value": str(value)}
    params: Any = {"event_name": "api.request", "identifier": identifier, "payload": payload, **more}
    return sdk.v1.billing.meter_events.create(params)


def total(sdk: stripe.StripeClient, meter: str, customer: str = "cus_1", now: int | None = None) -> float:
    start = (int(time.time()) if now is None else now) // DAY * DAY - 35 * DAY
    found = sdk.v1.billing.meters.event_summaries.list(
        meter, {"customer": customer, "start_time": start, "end_time": start + 40 * DAY}
    )
    return sum(summary.aggregated_value for summary in found.data)


def refused(call: Any, status: int, code: str | None, text: str = "") -> stripe.StripeError:
    with pytest.raises(stripe.StripeError) as caught:
        call()
    error = caught.value
    assert error.http_status == status, error
    body: Any = error.json_body
    assert body["error"].get("code") == code
    assert text in str(error.user_message)
    return error


# The protocol.


@pytest.mark.parametrize("key", ["pk_test_public", "nonsense"])
def test_a_call_without_a_secret_key_is_refused(server: StripeServer, key: str) -> None:
    with client(server, key) as sdk:
        error = refused(lambda: sdk.v1.billing.meters.list(), 401, None)
    assert isinstance(error, stripe.AuthenticationError)


def test_no_key_at_all(server: StripeServer) -> None:
    answer = httpx.get(f"{server.url}/v1/billing/meters", trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["request-id"].startswith("req_")


def test_a_parameter_that_nobody_knows_is_refused_wherever_it_is(server: StripeServer) -> None:
    def ask(path: str, **params: str) -> Json:
        answer = httpx.post(f"{server.url}{path}", data=params, auth=(server.key, ""), trust_env=False)
        assert answer.status_code == 400
        error: Json = answer.json()["error"]
        return error

    assert ask("/v1/invoiceitems", customer="cus_1", amonut="5") == {
        "type": "invalid_request_error",
        "code": "parameter_unknown",
        "message": "Received unknown parameter: amonut",
        "param": "amonut",
    }
    nested = {"mode": "subscription", "subscription_data[trial_days]": "3"}
    assert ask("/v1/checkout/sessions", **nested)["param"] == "subscription_data[trial_days]"
    in_list = {"mode": "subscription", "line_items[0][prize]": "price_pro"}
    assert ask("/v1/checkout/sessions", **in_list)["param"] == "line_items[0][prize]"
    assert ask("/v1/invoiceitems")["code"] == "parameter_missing"
    assert ask("/v1/invoiceitems", customer="cus_1", amount="1.5")["code"] == "parameter_invalid_integer"


def test_an_unknown_path_is_an_error_as_stripe_has_it(server: StripeServer) -> None:
    answer = httpx.get(f"{server.url}/v1/unheard_of", auth=(server.key, ""), trust_env=False)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


def test_what_is_not_there_is_missing(sdk: stripe.StripeClient) -> None:
    for call in (
        lambda: sdk.v1.customers.retrieve("cus_none"),
        lambda: sdk.v1.subscriptions.retrieve("sub_none"),
        lambda: sdk.v1.invoices.retrieve("in_none"),
        lambda: sdk.v1.checkout.sessions.retrieve("cs_none"),
        lambda: sdk.v1.billing.meters.retrieve("mtr_none"),
        lambda: sdk.v2.core.events.retrieve("evt_none"),
    ):
        refused(call, 404, "resource_missing")


def test_lists_come_in_pages_the_newest_first(server: StripeServer, sdk: stripe.StripeClient) -> None:
    for number in range(7):
        make_meter(sdk, f"meter.{number}")
    first = sdk.v1.billing.meters.list({"limit": 3})
    assert [meter.event_name for meter in first.data] == ["meter.6", "meter.5", "meter.4"]
    assert first.has_more
    assert [meter.event_name for meter in first.auto_paging_iter()] == [f"meter.{n}" for n in reversed(range(7))]
    back = sdk.v1.billing.meters.list({"limit": 2, "ending_before": first.data[2].id})
    assert [meter.event_name for meter in back.data] == ["meter.6", "meter.5"]
    refused(lambda: sdk.v1.billing.meters.list({"limit": 101}), 400, "parameter_invalid_integer")


def test_a_call_is_done_once_under_its_idempotency_key(server: StripeServer, sdk: stripe.StripeClient) -> None:
    def add(amount: int, key: str) -> Any:
        return sdk.v1.invoice_items.create(
            {"customer": "cus_1", "amount": amount, "currency": "usd"}, {"idempotency_key": key}
        )

    first, again = add(100, "one"), add(100, "one")
    assert first.id == again.id
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    error = refused(lambda: add(200, "one"), 400, None, "same parameters")
    assert isinstance(error, stripe.IdempotencyError)
    add(100, "two")
    assert [item["amount"] for item in server.all("invoiceitem")] == [100, 100]


def test_a_key_that_somebody_has_right_now_is_a_conflict(server: StripeServer, sdk: stripe.StripeClient) -> None:
    server.fail(kind="slow", path="/v1/invoiceitems", times=None, milliseconds=500)
    statuses = at_once(
        server,
        lambda sdk: sdk.v1.invoice_items.create(
            {"customer": "cus_1", "amount": 5, "currency": "usd"}, {"idempotency_key": "one"}
        ),
        2,
    )
    assert sorted(statuses) == [200, 409]


def at_once(server: StripeServer, call: Any, times: int) -> list[int]:
    barrier = Barrier(times)

    def run(_: int) -> int:
        with client(server) as sdk:
            barrier.wait()
            try:
                call(sdk)
            except stripe.StripeError as error:
                return error.http_status or 0
            return 200

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(run, range(times)))


def test_what_is_expanded_is_whole(server: StripeServer, sdk: stripe.StripeClient) -> None:
    server.put(
        fixtures.customer("cus_1", email="a@b.example"),
        fixtures.invoice("in_1", customer="cus_1", status="paid"),
        fixtures.invoice_payment("inpay_1", invoice="in_1", payment_intent="pi_1"),
    )
    plain = sdk.v1.invoices.retrieve("in_1")
    assert plain.customer == "cus_1"
    assert "payments" not in plain
    whole: Any = sdk.v1.invoices.retrieve("in_1", {"expand": ["customer", "payments"]})
    assert whole.customer.email == "a@b.example"
    assert whole.payments.data[0].payment.payment_intent == "pi_1"
    refused(lambda: sdk.v1.invoices.retrieve("in_1", {"expand": ["shoes"]}), 400, None, "cannot be expanded")


# Meters.


def test_a_meter_is_made_once_for_a_name(sdk: stripe.StripeClient) -> None:
    made = make_meter(sdk)
    assert sdk.v1.billing.meters.retrieve(made.id).event_name == "api.request"
    refused(lambda: make_meter(sdk), 400, None, "already exists")
    sdk.v1.billing.meters.deactivate(made.id)
    refused(lambda: report(sdk, "a"), 400, "no_meter")
    make_meter(sdk)
    assert [meter.status for meter in sdk.v1.billing.meters.list({"status": "active"})] == ["active"]


def test_an_identifier_counts_once_in_a_day(server: StripeServer, sdk: stripe.StripeClient) -> None:
    meter = make_meter(sdk)
    report(sdk, "a")
    refused(lambda: report(sdk, "a"), 400, None, "An event already exists with identifier a.")
    server.set(ahead=DAY - 60)
    refused(lambda: report(sdk, "a"), 400, None, "An event already exists with identifier a.")
    assert total(sdk, meter.id) == 5
    # Later it is forgotten, so whoever sends it again has it counted twice.
    server.set(ahead=DAY + 60)
    report(sdk, "a")
    assert total(sdk, meter.id) == 10


@pytest.mark.parametrize("value", ["1.5", "", "five", "\u0661"])
def test_only_whole_numbers_are_counted(sdk: stripe.StripeClient, value: str) -> None:
    make_meter(sdk)
    code = "meter_event_invalid_value" if value else "parameter_missing"
    refused(lambda: report(sdk, "a", value), 400, code)


def test_an_event_names_a_meter_and_a_customer(sdk: stripe.StripeClient) -> None:
    make_meter(sdk)
    refused(lambda: report(sdk, "a", event_name="none"), 400, "no_meter")
    refused(lambda: report(sdk, "a", payload={"value": "1"}), 400, "parameter_missing")


def test_events_are_of_the_last_35_days(server: StripeServer, sdk: stripe.StripeClient) -> None:
    make_meter(sdk)
    now = int(time.time())
    report(sdk, "back", timestamp=now - 35 * DAY + 60)
    report(sdk, "ahead", timestamp=now + 5 * 60 - 10)
    refused(lambda: report(sdk, "a", timestamp=now - 35 * DAY - 60), 400, "timestamp_too_far_in_past")
    refused(lambda: report(sdk, "a", timestamp=now + 5 * 60 + 60), 400, "timestamp_in_future")
    assert [event["identifier"] for event in server.all("billing.meter_event")] == ["back", "ahead"]


def test_one_call_at_a_time_for_a_customer_and_meter(server: StripeServer, sdk: stripe.StripeClient) -> None:
    make_meter(sdk)
    server.fail(kind="slow", path="/v1/billing/meter_events", times=None, milliseconds=500)
    statuses = at_once(server, lambda sdk: report(sdk, f"same-{next(_number)}"), 3)
    assert sorted(statuses) == [200, 429, 429]
    different = at_once(server, lambda sdk: report(sdk, f"other-{(n := next(_number))}", customer=f"cus_{n}"), 3)
    assert different == [200, 200, 200]


def test_more_than_so_many_a_second_are_too_many(server: StripeServer, sdk: stripe.StripeClient) -> None:
    make_meter(sdk)
    server.set(meter_events_a_second=0)
    error = refused(lambda: report(sdk, "a"), 429, "rate_limit")
    assert isinstance(error, stripe.RateLimitError)


def test_an_event_is_taken_back_for_a_day(server: StripeServer, sdk: stripe.StripeClient) -> None:
    def cancel(identifier: str, name: str = "api.request") -> Any:
        return sdk.v1.billing.meter_event_adjustments.create(
            {"event_name": name, "type": "cancel", "cancel": {"identifier": identifier}}
        )

    meter = make_meter(sdk)
    report(sdk, "a", 5)
    report(sdk, "b", 7)
    assert cancel("a").status == "pending"
    assert total(sdk, meter.id) == 7
    refused(lambda: cancel("a"), 400, None, "already been canceled")
    refused(lambda: cancel("none"), 400, "resource_missing")
    server.set(ahead=DAY + 60)
    refused(lambda: cancel("b"), 400, None, "within 24 hours")
    assert total(sdk, meter.id) == 7


def test_summaries_are_of_whole_minutes_hours_or_days(sdk: stripe.StripeClient) -> None:
    meter = make_meter(sdk)
    start = int(time.time()) // DAY * DAY - 2 * DAY
    for identifier, at in (("a", start), ("b", start + HOUR), ("c", start + HOUR + 59), ("d", start + DAY)):
        report(sdk, identifier, 10, timestamp=at)
    report(sdk, "other", 10, customer="cus_2", timestamp=start)

    def summaries(end: int, **more: Any) -> list[tuple[int, int, float]]:
        params: Any = {"customer": "cus_1", "start_time": start, "end_time": end, **more}
        found = sdk.v1.billing.meters.event_summaries.list(meter.id, params)
        return sorted((one.start_time, one.end_time, one.aggregated_value) for one in found.data)

    assert summaries(start + DAY) == [(start, start + DAY, 30)]  # the end is not in it
    assert summaries(start + HOUR + 60) == [(start, start + HOUR + 60, 30)]
    assert summaries(start + 2 * DAY, value_grouping_window="hour") == [
        (start, start + HOUR, 10),
        (start + HOUR, start + 2 * HOUR, 20),
        (start + DAY, start + DAY + HOUR, 10),
    ]
    assert [value for *_, value in summaries(start + 2 * DAY, value_grouping_window="day")] == [30, 10]
    refused(lambda: summaries(start + 90), 400, None, "minute boundaries")
    refused(lambda: summaries(start + 60, value_grouping_window="hour"), 400, None, "hour boundaries")


# Invoices.


def test_items_wait_for_the_next_invoice_with_what_meters_have_counted(
    server: StripeServer, sdk: stripe.StripeClient
) -> None:
    meter = make_meter(sdk)
    prices = [
        fixtures.price("price_flat", unit_amount=4900),
        fixtures.price("price_metered", unit_amount_decimal="2.5", meter=meter.id),
    ]
    server.put(*prices, fixtures.subscription("sub_1", customer="cus_1", prices=prices))
    end = int(time.time()) // DAY * DAY
    start = end - 10 * DAY
    report(sdk, "a", 3, timestamp=start)
    report(sdk, "before", 100, timestamp=start - 1)
    item = sdk.v1.invoice_items.create(
        {
            "customer": "cus_1",
            "subscription": "sub_1",
            "amount": -250,
            "currency": "usd",
            "description": "Credit",
            "period": {"start": start, "end": end},
            "metadata": {"line": "1"},
        }
    )
    assert [one.id for one in sdk.v1.invoice_items.list({"customer": "cus_1", "pending": True})] == [item.id]

    server.bill("sub_1", start, end)

    [invoice] = sdk.v1.invoices.list({"customer": "cus_1", "subscription": "sub_1"}).data
    lines: Any = sdk.v1.invoices.line_items.list(invoice.id, {"limit": 100}).data
    # Half a cent is rounded up.
    assert [(line.quantity, line.amount) for line in lines] == [(1, 4900), (3, 8), (1, -250)]
    assert (invoice.total, invoice.status) == (4658, "paid")
    assert lines[1].pricing.price_details.price == "price_metered"
    assert lines[2].parent.invoice_item_details.invoice_item == item.id
    assert sdk.v1.invoice_items.list({"customer": "cus_1", "pending": True}).data == []
    [payment] = sdk.v1.invoice_payments.list({"invoice": invoice.id}).data
    assert payment.amount_paid == 4658
    assert sdk.v1.invoice_items.retrieve(item.id).invoice == invoice.id


# Checkout and its webhooks.


def a_session(sdk: stripe.StripeClient, **more: Any) -> Any:
    params: Any = {
        "mode": "subscription",
        "line_items": [{"price": "price_pro", "quantity": 1}],
        "success_url": "https://app.example/paid",
        "metadata": {"organization_id": "o"},
        **more,
    }
    return sdk.v1.checkout.sessions.create(params)


def test_a_checkout_is_paid_and_its_events_are_sent(server: StripeServer, sdk: stripe.StripeClient) -> None:
    server.put(fixtures.price())
    session = a_session(sdk, subscription_data={"trial_period_days": 14, "metadata": {"plan": "pro"}})
    assert (session.status, session.customer) == ("open", None)
    with application(lambda _: Reply(200)) as ours:
        server.send_webhooks_to(ours.url)
        delivered = server.pay(session.id, copies=2, order="reversed")
        assert len(delivered) == len(ours.came) == 2 * len({one["event"]["id"] for one in delivered})
        events = [
            stripe.Webhook.construct_event(one.body, one.headers["stripe-signature"], server.secret)
            for one in ours.came
        ]
    assert events[0].type == "checkout.session.completed"
    paid = sdk.v1.checkout.sessions.retrieve(session.id)
    assert (paid.status, paid.url) == ("complete", None)
    assert isinstance(paid.subscription, str)
    subscription = sdk.v1.subscriptions.retrieve(paid.subscription)
    assert (subscription.status, subscription.metadata["plan"]) == ("trialing", "pro")
    assert (subscription.trial_end or 0) - (subscription.trial_start or 0) == 14 * DAY
    assert [one.id for one in sdk.v1.events.list({"type": "checkout.session.completed"})] == [events[0].id]
    assert len(sdk.v1.billing_portal.sessions.create({"customer": str(paid.customer)}).url) > 0


def test_what_checkout_refuses(server: StripeServer, sdk: stripe.StripeClient) -> None:
    server.put(fixtures.price(), fixtures.coupon("HALF"))
    a_session(sdk, discounts=[{"coupon": "HALF"}])
    refused(lambda: a_session(sdk, discounts=[{"coupon": "NONE"}]), 400, "resource_missing", "No such coupon")
    refused(lambda: a_session(sdk, line_items=[{"price": "price_none"}]), 400, "resource_missing", "No such price")
    refused(
        lambda: a_session(sdk, allow_promotion_codes=True, discounts=[{"coupon": "HALF"}]),
        400,
        None,
        "only specify one",
    )
    refused(lambda: a_session(sdk, customer="cus_1", customer_email="a@b.example"), 400, None, "only specify one")


def test_a_webhook_is_sent_until_it_is_taken(server: StripeServer) -> None:
    answers = iter([500, 503])
    event = fixtures.event("customer.created", fixtures.customer(), created=1)
    with application(lambda _: Reply(next(answers, 200))) as ours:
        server.send_webhooks_to(ours.url)
        [delivered] = server.send(event)
    assert (delivered["status"], len(ours.came)) == (200, 3)


def test_a_thin_event_has_its_data_where_it_is_fetched(server: StripeServer, sdk: stripe.StripeClient) -> None:
    meter = make_meter(sdk)
    report(sdk, "good", 1)
    report(sdk, "bad", 2)
    with application(lambda _: Reply(200)) as ours:
        server.send_webhooks_to(ours.url)
        server.report_errors({"bad": "No such customer"})
        [came] = ours.came
    assert "data" not in came.message
    assert came.message["related_object"]["id"] == meter.id
    event: Any = sdk.v2.core.events.retrieve(came.message["id"])
    [error] = event.data.reason.error_types
    assert error.sample_errors[0].request.identifier == "bad"
    assert total(sdk, meter.id) == 1


# Failures.


@pytest.mark.parametrize("status", [500, 503, 429])
def test_calls_fail_as_often_as_they_are_told(server: StripeServer, sdk: stripe.StripeClient, status: int) -> None:
    make_meter(sdk)
    server.fail(kind="status", path="/v1/billing/meter_events", status=status, retry_after=7, times=2)
    for _ in range(2):
        with pytest.raises(stripe.StripeError) as caught:
            report(sdk, "a")
        assert caught.value.http_status == status
        assert dict(caught.value.headers or {})["retry-after"] == "7"
    sdk.v1.billing.meters.list()
    report(sdk, "a")
    statuses = [one["status"] for one in server.requests("/v1/billing/meter_events")]
    assert statuses == [status, status, 200]


@pytest.mark.parametrize("kind", ["close", "hang"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_answer_is_lost_before_or_after_the_work(
    server: StripeServer, sdk: stripe.StripeClient, kind: str, when: str
) -> None:
    make_meter(sdk)
    server.fail(kind=kind, path="/v1/billing/meter_events", when=when)
    with pytest.raises(stripe.APIConnectionError):
        report(sdk, "a")
    assert [event["identifier"] for event in server.all("billing.meter_event")] == (["a"] if when == "after" else [])
    if when == "after":
        refused(lambda: report(sdk, "a"), 400, None, "already exists")
    else:
        report(sdk, "a")


def test_a_duplicate_on_demand(server: StripeServer, sdk: stripe.StripeClient) -> None:
    make_meter(sdk)
    server.fail(kind="duplicate", path="/v1/billing/meter_events")
    refused(lambda: report(sdk, "a"), 400, None, "An event already exists with identifier a.")
    assert server.all("billing.meter_event") == []


def test_it_fails_until_it_is_mended(server: StripeServer, sdk: stripe.StripeClient) -> None:
    server.fail(kind="status", status=500, times=None)
    for _ in range(3):
        refused(lambda: sdk.v1.billing.meters.list(), 500, None)
    server.mend()
    assert sdk.v1.billing.meters.list().data == []


def test_it_knows_after_a_kill_what_it_knew_before(tmp_path: Path) -> None:
    with stripe_server(keep=tmp_path / "stripe.jsonl") as server, client(server) as sdk:
        meter = make_meter(sdk)
        report(sdk, "a", 5)
        report(sdk, "b", 6)
        server.remove("billing.meter_event", "b")
        sdk.v1.invoice_items.create({"customer": "cus_1", "amount": 1, "currency": "usd"}, {"idempotency_key": "one"})
        server.kill()
        server.start()
        refused(lambda: report(sdk, "a"), 400, None, "already exists")
        assert total(sdk, meter.id) == 5
        sdk.v1.invoice_items.create({"customer": "cus_1", "amount": 1, "currency": "usd"}, {"idempotency_key": "one"})
        assert len(server.all("invoiceitem")) == 1


def test_nothing_that_runs_in_production_imports_it() -> None:
    """Only its own modules, the demo and the made-up events' command know of it."""
    root = Path(__file__).parents[1] / "api"
    users = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if "stripe.standin" in file.read_text() and "standin" not in file.relative_to(root).parts
    }
    assert users <= {"demo/stripe_place.py"}
