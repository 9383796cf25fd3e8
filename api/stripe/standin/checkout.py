"""Checkout and portal: sessions, and what happens when somebody pays."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from api.stripe import fixtures
from api.stripe.standin.account import Account
from api.stripe.standin.calls import Call
from api.stripe.standin.listing import page
from api.stripe.standin.parameters import FLAG, PAGE, TEXT, WHOLE, WORDS, ListOf, Members, OneOf
from api.stripe.standin.refusals import Refusal, missing, missing_param
from api.stripe.standin.store import Json

DAY: Final = 86_400
CARD: Final = "pm_card"

_CREATE_SESSION = Members(
    {
        "mode": OneOf(("payment", "setup", "subscription")),
        "line_items": ListOf(Members({"price": TEXT, "quantity": WHOLE})),
        "customer": TEXT,
        "customer_email": TEXT,
        "customer_creation": TEXT,
        "client_reference_id": TEXT,
        "success_url": TEXT,
        "cancel_url": TEXT,
        "allow_promotion_codes": FLAG,
        "discounts": ListOf(Members({"coupon": TEXT, "promotion_code": TEXT})),
        "metadata": WORDS,
        "subscription_data": Members(
            {
                "trial_period_days": WHOLE,
                "trial_end": WHOLE,
                "trial_settings": Members(
                    {"end_behavior": Members({"missing_payment_method": TEXT}, ("missing_payment_method",))}
                ),
                "metadata": WORDS,
                "description": TEXT,
                "billing_cycle_anchor": WHOLE,
                "proration_behavior": TEXT,
            }
        ),
        "payment_method_collection": OneOf(("always", "if_required")),
        "payment_method_types": ListOf(TEXT),
        "billing_address_collection": OneOf(("auto", "required")),
        "tax_id_collection": Members({"enabled": FLAG}, ("enabled",)),
        "automatic_tax": Members({"enabled": FLAG}, ("enabled",)),
        "customer_update": Members({"address": TEXT, "name": TEXT}),
        "locale": TEXT,
        "expires_at": WHOLE,
        "ui_mode": TEXT,
    },
    ("mode",),
)
_CREATE_PORTAL = Members(
    {
        "customer": TEXT,
        "return_url": TEXT,
        "configuration": TEXT,
        "locale": TEXT,
        "flow_data": Members({"type": TEXT, "after_completion": WORDS}),
    },
    ("customer",),
)


async def create_session(call: Call) -> Json:
    account, params = call.account, call.params
    await asyncio.sleep(call.slow)
    for needed in ("success_url", "line_items"):
        if needed not in params:
            raise Refusal(f"Missing required param: {needed}.", code="parameter_missing", param=needed)
    if "allow_promotion_codes" in params and "discounts" in params:
        raise Refusal("You may only specify one of these parameters: allow_promotion_codes, discounts.")
    if "customer" in params and "customer_email" in params:
        raise Refusal("You may only specify one of these parameters: customer, customer_email.")
    if "customer" in params and _is_unknown_customer(account, params["customer"]):
        raise missing_param("customer", params["customer"], "customer")
    for number, item in enumerate(params["line_items"]):
        param = f"line_items[{number}]"
        price = account.store.get("price", item.get("price", ""))
        if price is None:
            raise missing_param("price", item.get("price", ""), f"{param}[price]")
        if (price["recurring"] or {}).get("usage_type") == "metered" and "quantity" in item:
            raise Refusal("Quantity should not be specified where usage type is metered.", param=f"{param}[quantity]")
    for number, discount in enumerate(params.get("discounts", [])):
        if "coupon" in discount and account.store.get("coupon", discount["coupon"]) is None:
            raise missing_param("coupon", discount["coupon"], f"discounts[{number}][coupon]")
    trial = params.get("subscription_data", {}).get("trial_period_days")
    if trial is not None and trial < 1:
        raise Refusal("trial_period_days must be at least 1.", param="subscription_data[trial_period_days]")
    id = account.new_id("cs_test")
    now = account.now()
    made = fixtures.checkout_session(
        id,
        customer=params.get("customer"),
        created=now,
        mode=params["mode"],
        allow_promotion_codes=params.get("allow_promotion_codes"),
        cancel_url=params.get("cancel_url"),
        client_reference_id=params.get("client_reference_id"),
        customer_email=params.get("customer_email"),
        discounts=params.get("discounts", []),
        expires_at=params.get("expires_at", now + DAY),
        metadata=params.get("metadata", {}),
        success_url=params["success_url"],
        url=f"{account.base_url}/c/pay/{id}",
    )
    # What Stripe keeps to itself.
    account.store.put("checkout", id, {"items": params["line_items"], **params.get("subscription_data", {})})
    return account.store.put("checkout.session", id, made)


async def retrieve_session(call: Call) -> Json:
    return session_of(call.account, call.path["id"])


async def list_sessions(call: Call) -> Json:
    customer = call.params.get("customer")
    found = (one for one in call.account.store.all("checkout.session") if customer in (None, one["customer"]))
    return page(found, call.params, "/v1/checkout/sessions")


async def expire_session(call: Call) -> Json:
    session = session_of(call.account, call.path["id"])
    if session["status"] != "open":
        raise Refusal(f'Only Checkout Sessions with a status in ["open"] can be expired. It is {session["status"]}.')
    return call.account.store.put("checkout.session", session["id"], session | {"status": "expired", "url": None})


async def create_portal(call: Call) -> Json:
    account, params = call.account, call.params
    await asyncio.sleep(call.slow)
    if _is_unknown_customer(account, params["customer"]):
        raise missing_param("customer", params["customer"], "customer")
    id = account.new_id("bps")
    made = fixtures.portal_session(
        id,
        customer=params["customer"],
        created=account.now(),
        return_url=params.get("return_url"),
        url=f"{account.base_url}/p/session/{id}",
    )
    return account.store.put("billing_portal.session", id, made)


def session_of(account: Account, id: str) -> Json:
    found = account.store.get("checkout.session", id)
    if found is None:
        raise missing("checkout.session", id)
    return found


def paid(account: Account, session: Json) -> list[Json]:
    """Somebody has paid: customer, subscription, invoice and charge come to be. Returns their events in that order."""
    now = account.now()
    wanted = account.store.get("checkout", session["id"]) or {"items": []}
    prices = [account.store.get("price", item["price"]) for item in wanted["items"]]
    customer = _customer(account, session)
    trial_days = wanted.get("trial_period_days")
    ends = now + (trial_days * DAY if trial_days else 30 * DAY)
    made: dict[str, Any] = {
        "start": now,
        "end": ends,
        "created": now,
        "payment_method": CARD,
        "metadata": wanted.get("metadata", {}),
        "latest_invoice": account.new_id("in"),
    }
    if trial_days:
        made |= {"trial_start": now, "trial_end": ends}
    subscription = fixtures.subscription(
        account.new_id("sub"),
        customer=customer["id"],
        status="trialing" if trial_days else "active",
        prices=[price for price in prices if price is not None],
        **made,
    )
    account.store.put("subscription", subscription["id"], subscription)
    invoice = _first_invoice(account, subscription, is_free=bool(trial_days))
    session = account.store.put(
        "checkout.session",
        session["id"],
        session
        | {"customer": customer["id"], "subscription": subscription["id"], "invoice": invoice["id"]}
        | {"status": "complete", "payment_status": "no_payment_required" if trial_days else "paid", "url": None},
    )
    happened = [
        ("customer.created", customer),
        ("customer.subscription.created", subscription),
        (
            "invoice.finalized",
            invoice | {"status": "open", "amount_paid": 0, "amount_remaining": invoice["amount_due"]},
        ),
        ("invoice.paid", invoice),
        ("checkout.session.completed", session),
    ]
    return [fixtures.event(type, object, created=now, id=account.new_id("evt")) for type, object in happened] + [
        fixtures.event("invoice_payment.paid", payment, created=now, id=account.new_id("evt"))
        for payment in account.store.all("invoice_payment")
        if payment["invoice"] == invoice["id"]
    ]


def _customer(account: Account, session: Json) -> Json:
    known = account.store.get("customer", session["customer"] or "")
    made = known or fixtures.customer(
        session["customer"] or account.new_id("cus"), email=session["customer_email"], created=account.now()
    )
    made = made | {"invoice_settings": made["invoice_settings"] | {"default_payment_method": CARD}}
    return account.store.put("customer", made["id"], made)


def _first_invoice(account: Account, subscription: Json, *, is_free: bool) -> Json:
    id, now = subscription["latest_invoice"], account.now()
    lines = [
        fixtures.invoice_line(
            account.new_id("il"),
            invoice=id,
            amount=0 if is_free else item["price"]["unit_amount"] or 0,
            description=f"1 x {item['price']['product']}",
            price=item["price"],
            subscription=subscription["id"],
            start=item["current_period_start"],
            end=item["current_period_end"],
            currency=subscription["currency"],
        )
        for item in subscription["items"]["data"]
        if item["price"]["recurring"]["usage_type"] == "licensed"
    ]
    invoice = fixtures.invoice(
        id,
        customer=subscription["customer"],
        subscription=subscription["id"],
        status="paid",
        number=account.new_id("GL")[:11].upper(),
        lines=lines,
        start=now,
        end=now,
        created=now,
        billing_reason="subscription_create",
        currency=subscription["currency"],
    )
    account.store.put("invoice", id, invoice)
    if invoice["total"] > 0:
        pay(account, invoice)
    return invoice


def pay(account: Account, invoice: Json) -> None:
    """Put the charge, the payment intent and the payment of an invoice that is paid."""
    charge, intent = account.new_id("ch"), account.new_id("pi")
    facts = {"customer": invoice["customer"], "amount": invoice["total"], "created": account.now()}
    account.store.put(
        "charge",
        charge,
        fixtures.charge(charge, payment_intent=intent, currency=invoice["currency"], **facts),
    )
    account.store.put("payment_intent", intent, fixtures.payment_intent(intent, charge=charge, **facts))
    payment = fixtures.invoice_payment(
        account.new_id("inpay"),
        invoice=invoice["id"],
        payment_intent=intent,
        amount=invoice["total"],
        currency=invoice["currency"],
        created=account.now(),
    )
    account.store.put("invoice_payment", payment["id"], payment)


def _is_unknown_customer(account: Account, id: str) -> bool:
    """Tests link customers that were never made here, so one is unknown when it is deleted, or says that it is."""
    return account.store.get("deleted_customer", id) is not None or "unknown" in id


CALLS = {
    ("POST", "/v1/checkout/sessions"): (create_session, _CREATE_SESSION),
    ("GET", "/v1/checkout/sessions"): (list_sessions, Members({**PAGE, "customer": TEXT, "status": TEXT})),
    ("GET", "/v1/checkout/sessions/{id}"): (retrieve_session, Members({})),
    ("POST", "/v1/checkout/sessions/{id}/expire"): (expire_session, Members({})),
    ("POST", "/v1/billing_portal/sessions"): (create_portal, _CREATE_PORTAL),
}
