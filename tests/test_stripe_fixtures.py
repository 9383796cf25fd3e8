"""What we make up looks like what Stripe sends, in each version of its API, and all of it is made something of.

Stripe's own sample objects lie beside the project where somebody has put them; it does not need them to be tested.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any, Final

import httpx
import pytest
import stripe
from pydantic import SecretStr

from api.settings import ENV_FILE, PROJECT
from api.stripe import fixtures
from api.stripe.fixtures.life import METER_ERRORS, TYPES, Life, happened
from api.stripe.fixtures.signing import signed
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import RunningStack

Json = dict[str, Any]

SAMPLES: Final = PROJECT.parent / "shared" / "data" / "stripe" / "fixtures3.json"
SECRET: Final = "whsec_made_up"
PATH: Final = "/api/billing/stripe_webhook"

METERED = fixtures.price("price_metered", unit_amount_decimal="2.5", meter="mtr_1")
OBJECTS: Final[tuple[Json, ...]] = (
    fixtures.subscription(prices=[fixtures.price(), METERED]),
    fixtures.customer(),
    fixtures.customer(payment_method="pm_card"),
    fixtures.deleted_customer(),
    fixtures.checkout_session(),
    fixtures.checkout_session(customer="cus_1", subscription="sub_1"),
    fixtures.portal_session(),
    fixtures.charge(refunded=100),
    fixtures.dispute(),
    fixtures.refund(),
    fixtures.payment_intent(),
    fixtures.invoice(),
    fixtures.invoice(status="draft", subscription=None),
    fixtures.invoice(status="paid", lines=[fixtures.invoice_line(price=METERED)]),
    fixtures.invoice_line(invoice_item="ii_1"),
    fixtures.invoice_item(subscription="sub_1"),
    fixtures.invoice_payment(),
    fixtures.price(),
    METERED,
    fixtures.product(),
    fixtures.coupon(),
    fixtures.meter(),
    fixtures.meter_event(),
    fixtures.meter_event_adjustment(),
    fixtures.meter_event_summary(1.5, end=fixtures.CREATED + 60),
    fixtures.entitlement_summary("sso"),
)
# Members that Stripe has and its samples leave out, and ids of what the samples have whole.
NOT_IN_SAMPLES: Final = {
    "line_item.pricing.price_details",
    "invoice.lines.data[].pricing.price_details",
    "invoice_payment.payment.payment_intent",
    "entitlements.active_entitlement_summary.entitlements.data[].feature",
}


def samples() -> dict[str, Json]:
    if not SAMPLES.exists():
        return {}
    found: dict[str, Json] = json.loads(SAMPLES.read_text())["resources"]
    return found


def differences(path: str, ours: Any, theirs: Any) -> Iterator[str]:
    """Members of ours that theirs has not, or has as another type of JSON. null says nothing of either."""
    if ours is None or theirs is None or path in NOT_IN_SAMPLES:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            if path.endswith(".metadata"):
                continue
            if name in theirs or f"{path}.{name}" in NOT_IN_SAMPLES:
                yield from differences(f"{path}.{name}", value, theirs.get(name))
            else:
                yield f"{path}.{name}: they have none"
    elif isinstance(ours, list) and isinstance(theirs, list):
        for value in ours:
            yield from differences(f"{path}[]", value, theirs[0] if theirs else None)
    elif json_type(ours) != json_type(theirs):
        yield f"{path}: {json_type(ours)}, and theirs is {json_type(theirs)}"


def json_type(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def test_what_we_make_up_has_what_stripe_has() -> None:
    found = samples()
    compared = OBJECTS if found else ()
    for ours in compared:
        kind = "deleted_customer" if ours.get("deleted") else ours["object"]
        assert list(differences(kind, ours, found[kind])) == []
    if found:
        event = fixtures.event("plan.created", found["event"]["data"]["object"], created=1)
        assert list(differences("event", event, found["event"])) == []


def test_the_comparison_finds_what_is_different() -> None:
    theirs = {"a": 1, "b": {"c": "text"}, "d": [{"e": True}], "f": None}
    assert list(differences("x", {"a": 2.5, "b": {"c": "other"}, "d": [{"e": False}], "f": "known"}, theirs)) == []
    ours = {"a": "1", "b": {"z": 1}, "d": [{"e": 1}], "g": 1}
    assert list(differences("x", ours, theirs)) == [
        "x.a: str, and theirs is number",
        "x.b.z: they have none",
        "x.d[].e: number, and theirs is bool",
        "x.g: they have none",
    ]


# What sql/stripe/facts.sql reads, and where each version has it.


@pytest.mark.parametrize("version", fixtures.VERSIONS)
def test_periods_and_subscriptions_are_where_the_version_has_them(version: str) -> None:
    subscription = fixtures.subscription(start=10, end=20, api_version=version)
    invoice = fixtures.invoice(subscription="sub_1", charge="ch_1", payment_intent="pi_1", api_version=version)
    charge = fixtures.charge(invoice="in_1", api_version=version)
    [item] = subscription["items"]["data"]
    period = {"current_period_start": 10, "current_period_end": 20}
    if version < "2025-03-31":
        assert period.items() <= subscription.items()
        assert not period.keys() & item.keys()
        assert (invoice["subscription"], invoice["charge"], invoice["payment_intent"]) == ("sub_1", "ch_1", "pi_1")
        assert "parent" not in invoice
        assert charge["invoice"] == "in_1"
    else:
        assert period.items() <= item.items()
        assert not period.keys() & subscription.keys()
        assert invoice["parent"]["subscription_details"]["subscription"] == "sub_1"
        assert not {"subscription", "charge", "payment_intent", "paid"} & invoice.keys()
        assert "invoice" not in charge


def test_objects_have_what_is_read_of_them() -> None:
    wanted = {
        "subscription": "status cancel_at cancel_at_period_end canceled_at ended_at trial_end start_date created "
        "latest_invoice default_payment_method trial_settings items customer",
        "invoice": "status number currency total amount_due amount_paid amount_remaining attempt_count period_start "
        "period_end hosted_invoice_url created status_transitions metadata lines customer",
        "charge": "amount amount_refunded currency created status payment_intent",
        "dispute": "amount currency created reason status charge payment_intent",
        "customer": "email metadata default_source invoice_settings",
        "checkout.session": "customer metadata client_reference_id status url subscription",
        "entitlements.active_entitlement_summary": "customer entitlements",
        "invoice_payment": "invoice payment status",
        "billing.meter": "event_name status default_aggregation",
        "invoiceitem": "amount currency customer period metadata invoice",
    }
    for object in OBJECTS:
        if not object.get("deleted"):
            assert set(wanted.get(object["object"], "").split()) <= object.keys(), object["object"]
    assert wanted.keys() <= {object["object"] for object in OBJECTS}


def test_the_same_is_the_same_each_time_and_another_has_another_id() -> None:
    one = fixtures.event("invoice.paid", fixtures.invoice(), created=1)
    assert fixtures.event("invoice.paid", fixtures.invoice(), created=1) == one
    others = [
        fixtures.event("invoice.voided", fixtures.invoice(), created=1),
        fixtures.event("invoice.paid", fixtures.invoice("in_2"), created=1),
        fixtures.event("invoice.paid", fixtures.invoice(), created=2),
        fixtures.event("invoice.paid", fixtures.invoice(), created=1, previous={}),
    ]
    assert len({event["id"] for event in (one, *others)}) == 5


def test_stripes_library_takes_what_is_signed() -> None:
    event = fixtures.event("customer.created", fixtures.customer(name="Zoë"), created=1)
    body, headers = signed(event, ["whsec_old", SECRET])
    for secret in ("whsec_old", SECRET):
        read = stripe.Webhook.construct_event(body, headers["stripe-signature"], secret)
        assert (read.id, read.data.object["name"]) == (event["id"], "Zoë")
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(body, headers["stripe-signature"], "whsec_other")
    late = int(time.time()) - 301
    body, headers = signed(event, SECRET, at=late)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(body, headers["stripe-signature"], SECRET)


# Through the real webhook.


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    with open_stack(stripe_webhook_secret=SecretStr(SECRET)) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(stack: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.gateway_url, timeout=60, trust_env=False) as client:
        yield client


def send(gateway: httpx.Client, event: Json) -> httpx.Response:
    body, headers = signed(event, SECRET)
    return gateway.post(PATH, content=body, headers=headers)


def life_of(organization: str) -> Life:
    return Life(int(time.time()), organization_id=organization)


@pytest.mark.parametrize("version", fixtures.VERSIONS)
def test_each_event_of_a_made_up_life_is_applied(
    stack: RunningStack, gateway: httpx.Client, make_organization: MakeOrganization, version: str
) -> None:
    organization = str(make_organization(stack.database).id)
    life = Life(int(time.time()), organization_id=organization, api_version=version)
    outcomes = {
        type: send(gateway, happened(type, life, id=f"evt_{organization}_{number}")).json()
        for number, type in enumerate(TYPES)
    }
    # Those of one second may have been told of before, by one that counts as later.
    not_applied = {type: answer for type, answer in outcomes.items() if answer["outcome"] not in ("applied", "stale")}
    assert not_applied == {}
    with stack.database.connect() as connection:
        statuses = connection.execute(
            "select status from stripe.webhook_events "
            "where organization_id = %s and status not in ('applied', 'stale')",
            [organization],
        ).fetchall()
        payment = connection.execute(
            "select count(*) from billing.payments where organization_id = %s and reference = %s",
            [organization, life.id_of("in")],
        ).fetchone()
    assert (statuses, payment) == ([], (1,))


def test_all_that_is_made_up_is_handled() -> None:
    """TYPES are those that sql/stripe/apply.sql names, but for what only we make: snapshots of what we fetched."""
    applied = (PROJECT / "sql" / "stripe" / "apply.sql").read_text()
    for type in TYPES:
        assert f"'{type}'" in applied, type
    assert set(METER_ERRORS) <= set(TYPES)


def test_stripes_samples_leave_a_consistent_database(
    stack: RunningStack, gateway: httpx.Client, make_organization: MakeOrganization
) -> None:
    """Those of what we handle in events of every type, and each of the others in one: whatever they are."""
    found = samples()
    ours = {object["object"] for object in OBJECTS}
    organization = make_organization(stack.database).id
    with stack.database.connect() as connection:
        connection.execute("select stripe.link_customer(%s, 'cus_QXg1o8vcGmoR32', false, 'test')", [organization])
    turns = cycle(TYPES)
    pairs = [(type, object) for name, object in found.items() for type in (TYPES if name in ours else (next(turns),))]
    now = int(time.time())
    events = [
        fixtures.event(type, object, created=now + number % 3, id=f"evt_sample_{number}", livemode=False)
        for number, (type, object) in enumerate(pairs)
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda event: send(gateway, event), events))
    assert {answer.status_code for answer in answers} <= {200}

    with stack.database.connect() as connection:
        [stored] = connection.execute(
            "select count(*), count(*) filter (where status = 'received') from stripe.webhook_events "
            "where id like 'evt_sample_%'"
        ).fetchall()
        assert stored == (len(events), 0)
        failures = connection.execute(
            "select distinct type, message from stripe.webhook_events "
            "where id like 'evt_sample_%' and status in ('failed', 'dead')"
        ).fetchall()
    # What fails has failed for a reason that we know, and not because something of it could not be stored.
    known = re.compile("STRIPE_UNKNOWN: |it cannot be read: |.* is not known yet$")
    assert [failure for failure in failures if not known.match(failure[1])] == []
    # And nobody else is in its way.
    other = life_of(str(make_organization(stack.database).id))
    for type in ("checkout.session.completed", "customer.subscription.created", "invoice.paid"):
        assert send(gateway, happened(type, other)).json()["outcome"] == "applied", type


# The command.


def run(stack: RunningStack, *arguments: str, secret: str = SECRET) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        ENV_FILE: "",
        "MIGRATION_DATABASE_URL": stack.database.migrator,
        "STRIPE_WEBHOOK_SECRET": secret,
        "STATE_DIR": str(stack.state.root),
    }
    command = [str(PROJECT / ".venv/bin/goldleaves"), "stripe", "fixtures", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_life_is_triggered_by_hand(stack: RunningStack, make_organization: MakeOrganization) -> None:
    slug = make_organization(stack.database).slug
    to = ("--organization", slug, "--url", f"{stack.gateway_url}{PATH}")

    def trigger(*arguments: str) -> Json:
        ran = run(stack, "trigger", *arguments, *to)
        assert ran.returncode == 0, ran.stderr
        status, _, text = ran.stdout.partition(" ")
        assert status == "200"
        answer: Json = json.loads(text)
        return answer

    assert trigger("customer.subscription.created")["outcome"] == "unlinked"
    assert trigger("checkout.session.completed")["outcome"] == "applied"
    assert trigger("customer.subscription.updated", "--set", "status=past_due")["message"] == "past_due"
    assert trigger("invoice.paid", "--id", "evt_by_hand")["outcome"] == "applied"
    assert trigger("invoice.paid", "--id", "evt_by_hand")["message"] == "already processed"
    assert trigger("customer.subscription.deleted", "--api-version", "2020-08-27")["message"] == "canceled"
    with stack.database.connect() as connection:
        plans = connection.execute(
            "select p.plan_code, p.status from billing.subscription_phases p "
            "join tenancy.organizations o on o.id = p.organization_id where o.slug = %s order by p.starts_at",
            [slug],
        ).fetchall()
    assert plans[-1] == ("pro", "canceled")


def test_what_cannot_be_triggered_is_said_in_a_line(stack: RunningStack) -> None:
    to = ("--url", f"{stack.gateway_url}{PATH}")
    for arguments, text in (
        (("trigger", "invoice.eaten", *to), "There is no made-up event 'invoice.eaten'"),
        (("trigger", "invoice.paid", "--organization", "nobody-here", *to), "There is no organization 'nobody-here'"),
        (("trigger", "invoice.paid", "--set", "a.b=1", *to), "has no member 'a'"),
        (("trigger", "invoice.paid", "--set", "a", *to), "MEMBER=VALUE"),
        (("trigger", "invoice.paid", "--url", "http://127.0.0.1:9/"), "Nobody answers"),
    ):
        ran = run(stack, *arguments)
        assert (ran.returncode, text in ran.stderr, "Traceback" in ran.stderr) == (1, True, False), ran.stderr
    refused = run(stack, "trigger", "invoice.paid", *to, secret="whsec_of_nobody")
    assert refused.returncode == 1
    assert refused.stdout.startswith("400") and "INVALID_SIGNATURE" in refused.stdout


def test_the_list_names_all() -> None:
    ran = subprocess.run(
        [str(PROJECT / ".venv/bin/goldleaves"), "stripe", "fixtures", "list"], capture_output=True, text=True
    )
    assert tuple(ran.stdout.split()) == TYPES
