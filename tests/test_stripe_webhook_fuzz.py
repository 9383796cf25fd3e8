"""The endpoint of webhooks under garbage: headers, bodies, replays, clocks, sizes, and events with every field of a
wrong type, signed and not. It answers 2xx or 4xx, goes on, and the database stays well-formed.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from api.stack.processes import members
from api.stripe.fixtures import Json, event, price, subscription
from api.stripe.fixtures import charge as charge_of
from api.stripe.fixtures import checkout_session as checkout_of
from api.stripe.fixtures import customer as customer_of
from api.stripe.fixtures import invoice as invoice_of
from api.stripe.fixtures.signing import headers_of
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.stripe_inbox import NOW, PATH, SECRET, Stripe, hearing, link

EXAMPLES = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = range(8)
WRONG: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e300,
    10**30,
    -(10**30),
    "",
    "x",
    "\u0001",
    "null",
    "0",
    "-1",
    "1e400",
    "9" * 400,
    "ü" * 300,
    "infinity",
    "NaN",
    "2026-01-01",
    "'; drop table stripe.webhook_events; --",
    [],
    [[]],
    [None],
    {},
    {"id": None},
    {"id": {}},
    {"id": "x"},
    {"data": [{}]},
    {"object": "list", "data": "x"},
    {"data": [None, 1, "x", []]},
]


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    with open_stack(stripe_webhook_secret=SecretStr(SECRET)) as running:
        yield running


@pytest.fixture(scope="module")
def stripe(stack: RunningStack) -> Iterator[Stripe]:
    with hearing(stack) as made:
        yield made


@pytest.fixture(scope="module")
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database, roles=("owner",))


@pytest.fixture(scope="module")
def customer(stack: RunningStack, organization: Organization) -> str:
    return link(stack.database, organization.id)


@pytest.fixture(autouse=True)
def sound(stack: RunningStack, stripe: Stripe) -> Iterator[None]:
    """Whatever was sent: it is alive, all is settled or will be, and timelines are as they may be."""
    running = members("sidecar", stack.state)
    yield
    assert members("sidecar", stack.state) == running, "it was not started again"
    assert httpx.get(f"{stack.gateway_url}/health", trust_env=False).status_code == 200
    for query in (
        "select id from stripe.webhook_events where status = 'received'",
        "select id from stripe.webhook_events where (settled_at is null) = (status in ('applied', 'stale', 'ignored'))",
        "select id from stripe.webhook_events where status in ('failed', 'dead') and message is null",
        "select id from stripe.webhook_events where status = 'failed' and next_attempt_at > now() + interval '2 days'",
        """
        select starts_at
        from (
          select p.*, lag(p.*) over (partition by p.organization_id order by p.starts_at) as before
          from billing.subscription_phases p
        ) as p
        where (before).starts_at = starts_at
          or (subscription_id, status, plan_code, fee_by_stripe)
            = ((before).subscription_id, (before).status, (before).plan_code, (before).fee_by_stripe)
        """,
        """
        select p.organization_id
        from billing.billing_periods p
        join billing.billing_periods o
          on o.organization_id = p.organization_id and o.period_start < p.period_end and o.period_end > p.period_start
        where o.period_start <> p.period_start
        """,
        """
        select organization_id from billing.refunds r
        group by organization_id, payment_id
        having sum(amount_cents) > (
          select p.amount_cents
          from billing.payments p
          where p.organization_id = r.organization_id and p.id = r.payment_id
        )
        """,
    ):
        assert stripe.superuser.execute(query.encode()).fetchall() == []


def assert_answered(answer: httpx.Response) -> None:
    assert 200 <= answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code == 200:
        assert set(answer.json()) == {"received", "outcome", "message"}
    else:
        assert set(answer.json()) == {"code", "message", "details", "hint"}


def templates(customer: str) -> list[Json]:
    """One of each kind that something is made of."""
    plan = [price(lookup_key="pro")]
    at = NOW - 500
    return [
        event(
            "customer.subscription.created",
            subscription("sub_fuzz", customer=customer, prices=plan, created=at),
            created=at,
        ),
        event(
            "customer.subscription.updated",
            subscription("sub_fuzz", customer=customer, prices=plan, status="trialing", trial_end=at + 999),
            created=at + 1,
            previous={"status": "active", "trial_end": None},
        ),
        event(
            "customer.subscription.deleted",
            subscription("sub_gone", customer=customer, prices=plan, status="canceled", ended_at=at),
            created=at,
        ),
        event("invoice.finalized", invoice_of("in_fuzz", customer=customer, subscription="sub_fuzz"), created=at),
        event(
            "invoice.paid", invoice_of("in_fuzz", customer=customer, subscription="sub_fuzz", status="paid"), created=at
        ),
        event("invoice.payment_failed", invoice_of("in_fuzz", customer=customer, subscription="sub_fuzz"), created=at),
        event(
            "invoice.paid",
            invoice_of(
                "in_old",
                customer=customer,
                status="paid",
                charge="ch_fuzz",
                payment_intent="pi_fuzz",
                api_version="2020-08-27",
            ),
            created=at,
            api_version="2020-08-27",
        ),
        event("charge.refunded", charge_of("ch_fuzz", customer=customer), created=at),
        event(
            "charge.dispute.created",
            {"id": "dp_fuzz", "object": "dispute", "charge": "ch_fuzz", "amount": 5, "currency": "usd"},
            created=at,
        ),
        event("customer.updated", customer_of(customer), created=at),
        event("customer.created", customer_of("cus_other"), created=at),
        event("checkout.session.completed", checkout_of("cs_fuzz", customer=customer), created=at),
        event(
            "entitlements.active_entitlement_summary.updated",
            {
                "object": "entitlements.active_entitlement_summary",
                "customer": customer,
                "entitlements": {"object": "list", "data": [], "has_more": False},
            },
            created=at,
        ),
        {
            "id": "evt_thin",
            "object": "v2.core.event",
            "type": "v1.billing.meter.error_report_triggered",
            "livemode": False,
            "created": "2026-01-01T00:00:00.000Z",
            "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1"},
        },
    ]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """To every member and element."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = wrong
    return changed


def without(value: Any, path: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return changed


@pytest.mark.parametrize("kind", range(14))
def test_every_field_of_every_event_wrong_and_missing(stripe: Stripe, customer: str, kind: int) -> None:
    """Signed by Stripe, of a version that nobody has seen: kept, and no reason to fall over."""
    template = templates(customer)[kind]
    chance = random.Random(kind)
    number = 0
    for path in paths(template):
        for wrong in (chance.choice(WRONG), ...):
            changed = without(template, path) if wrong is ... else put(template, path, wrong)
            if path != ("id",):
                changed["id"] = f"evt_fuzz_{kind}_{number}"
            number += 1
            assert_answered(stripe.send(changed))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@EXAMPLES
@given(body=st.binary(max_size=2000), header=st.binary(max_size=300))
def test_anything_for_a_body_and_a_header(stripe: Stripe, body: bytes, header: bytes) -> None:
    printable = bytes(byte for byte in header if byte == 9 or 32 <= byte < 127 or byte > 127).strip()
    answer = stripe.http.post(PATH, content=body, headers=[(b"stripe-signature", printable)])
    assert answer.status_code == 400, answer.text


@EXAMPLES
@given(body=st.one_of(st.binary(max_size=500), st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_anything_signed(stripe: Stripe, body: bytes) -> None:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    assert_answered(stripe.http.post(PATH, content=body, headers=headers_of(text, SECRET)))


@EXAMPLES
@given(
    members=st.fixed_dictionaries(
        {
            "id": st.from_regex(r"\Aevt_[a-z0-9]{1,30}\Z"),
            "type": st.sampled_from(
                ["customer.subscription.updated", "invoice.paid", "charge.refunded", "customer.updated", "a"]
            ),
            "created": st.integers(NOW - 10**6, NOW + 10**6) | json_values,
        },
        optional={
            "data": json_values | st.fixed_dictionaries({"object": json_values, "previous_attributes": json_values}),
            "livemode": json_values,
            "api_version": json_values,
            "object": json_values,
        },
    )
)
def test_events_of_any_content(stripe: Stripe, members: Json) -> None:
    body = json.dumps(members)  # with surrogates, as escapes
    assert_answered(stripe.http.post(PATH, content=body.encode(), headers=headers_of(body, SECRET)))


@EXAMPLES
@given(skew=st.integers(-(10**12), 10**12), cut=st.integers(0, 200), number=st.integers(1, 10**9))
def test_clocks_and_headers_that_were_cut(stripe: Stripe, customer: str, skew: int, cut: int, number: int) -> None:
    body = json.dumps(templates(customer)[1] | {"id": f"evt_cut_{number}"})
    at = int(time.time()) + skew
    header = headers_of(body, SECRET, at=at)["stripe-signature"]
    answer = stripe.http.post(PATH, content=body.encode(), headers={"stripe-signature": header[:cut]})
    is_good = abs(skew) < 290 and cut >= len(header)
    if not is_good and abs(skew) > 310:
        assert answer.status_code == 400
    assert_answered(answer)


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_of_a_good_event_turned(stripe: Stripe, customer: str, seed: int) -> None:
    """Signed after they were turned, and before."""
    chance = random.Random(seed)
    good = json.dumps(chance.choice(templates(customer))).encode()
    for _ in range(25):
        body = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        turned = bytes(body)
        before = stripe.http.post(PATH, content=turned, headers=headers_of(good.decode(), SECRET))
        assert before.status_code == 400 or turned == good
        try:
            headers = headers_of(turned.decode(), SECRET)
        except UnicodeDecodeError:
            continue
        assert_answered(stripe.http.post(PATH, content=turned, headers=headers))


@pytest.mark.parametrize(
    "inner",
    [
        "[" * 3000 + "]" * 3000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "1" * 100_000,
        "1e100000",
        "-1e131072",
        "1e-16383",
        '"' + "\\u0000" * 10 + '"',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '{"id": "a", "id": "b", "id": 1}',
        '"' + "x" * 900_000 + '"',
        "[" + "1," * 400_000 + "1]",
        '{"items": {"data": [' + ",".join(['{"id": "si", "price": {"id": "p", "unit_amount": 5}}'] * 5000) + "]}}",
    ],
    ids=lambda inner: f"{inner[:12].encode('unicode_escape').decode()}_{len(inner)}",
)
def test_deep_and_huge(stripe: Stripe, customer: str, inner: str) -> None:
    for where in ("object", "previous_attributes"):
        data = f'{{"{where}": {inner}}}'
        body = f'{{"id": "evt_deep", "type": "customer.subscription.updated", "created": {NOW}, "data": {data}}}'
        assert_answered(stripe.http.post(PATH, content=body.encode(), headers=headers_of(body, SECRET)))


def test_a_storm_of_replays_is_one_event(stripe: Stripe, customer: str) -> None:
    good = templates(customer)[0] | {"id": "evt_storm"}
    before = stripe.superuser.execute("select count(*) from audit.log").fetchone()
    outcomes = [stripe.outcome(good) for _ in range(50)]
    assert set(outcomes[1:]) <= {"duplicate", outcomes[0]}
    rows = stripe.superuser.execute("select count(*) from stripe.webhook_events where id = 'evt_storm'").fetchone()
    assert rows == (1,)
    assert before is not None
