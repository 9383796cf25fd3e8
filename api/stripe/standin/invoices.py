"""Invoices with their lines and payments, charges, and items that wait for the next invoice."""

from __future__ import annotations

import asyncio

from api.stripe import fixtures
from api.stripe.standin.calls import Call
from api.stripe.standin.listing import is_within, page
from api.stripe.standin.parameters import FLAG, PAGE, RANGE, TEXT, WHOLE, WORDS, Members, OneOf
from api.stripe.standin.refusals import Refusal, missing, missing_param
from api.stripe.standin.store import Json

_LIST_INVOICES = Members(
    {**PAGE, "customer": TEXT, "subscription": TEXT, "status": TEXT, "created": RANGE, "due_date": RANGE}
)
_LIST_PAYMENTS = Members(
    {
        **PAGE,
        "invoice": TEXT,
        "status": OneOf(("canceled", "open", "paid")),
        "payment": Members(
            {"type": OneOf(("charge", "payment_intent")), "payment_intent": TEXT, "charge": TEXT}, ("type",)
        ),
        "created": RANGE,
    }
)
_CREATE_ITEM = Members(
    {
        "customer": TEXT,
        "amount": WHOLE,
        "currency": TEXT,
        "description": TEXT,
        "period": Members({"start": WHOLE, "end": WHOLE}, ("start", "end")),
        "metadata": WORDS,
        "subscription": TEXT,
        "invoice": TEXT,
        "discountable": FLAG,
        "tax_behavior": TEXT,
        "tax_code": TEXT,
    },
    ("customer",),
)
_LIST_ITEMS = Members({**PAGE, "customer": TEXT, "invoice": TEXT, "pending": FLAG, "created": RANGE})
_LARGEST = 99_999_999


async def list_invoices(call: Call) -> Json:
    params = call.params
    found = (
        one
        for one in call.account.store.all("invoice")
        if params.get("customer") in (None, one["customer"])
        and params.get("status") in (None, one["status"])
        and params.get("subscription") in (None, subscription_of(one))
        and is_within(one["created"], params.get("created"))
    )
    return page(found, params, "/v1/invoices")


async def retrieve_invoice(call: Call) -> Json:
    return _found(call, "invoice")


async def list_lines(call: Call) -> Json:
    invoice = _found(call, "invoice")
    return page(invoice["lines"]["data"], call.params, f"/v1/invoices/{invoice['id']}/lines", newest_first=False)


async def list_payments(call: Call) -> Json:
    params = call.params
    payment = params.get("payment", {})
    found = (
        one
        for one in call.account.store.all("invoice_payment")
        if params.get("invoice") in (None, one["invoice"])
        and params.get("status") in (None, one["status"])
        and payment.get("payment_intent") in (None, one["payment"].get("payment_intent"))
        and payment.get("charge") in (None, one["payment"].get("charge"))
    )
    return page(found, params, "/v1/invoice_payments")


async def retrieve_charge(call: Call) -> Json:
    return _found(call, "charge")


async def retrieve_payment_intent(call: Call) -> Json:
    return _found(call, "payment_intent")


async def create_item(call: Call) -> Json:
    """Of a customer that is known here when there are any; negative is a credit."""
    account, params = call.account, call.params
    await asyncio.sleep(call.slow)
    for needed in ("amount", "currency"):
        if needed not in params:
            raise Refusal(f"Missing required param: {needed}.", code="parameter_missing", param=needed)
    if abs(params["amount"]) > _LARGEST:
        raise Refusal("Amount must be no more than $999,999.99", code="amount_too_large", param="amount")
    if account.store.get("deleted_customer", params["customer"]) is not None:
        raise missing_param("customer", params["customer"], "customer")
    subscription = params.get("subscription")
    if subscription is not None:
        known = account.store.get("subscription", subscription)
        if known is None:
            raise missing_param("subscription", subscription, "subscription")
        if known["status"] == "canceled":
            raise Refusal(f"You cannot add invoice items to the canceled subscription {subscription}.")
    now = account.now()
    period = params.get("period", {"start": now, "end": now})
    if period["end"] < period["start"]:
        raise Refusal("period[end] must not be before period[start].", param="period[end]")
    made = fixtures.invoice_item(
        account.new_id("ii"),
        customer=params["customer"],
        amount=params["amount"],
        currency=params["currency"],
        description=params.get("description"),
        start=period["start"],
        end=period["end"],
        subscription=subscription,
        created=now,
        metadata=params.get("metadata", {}),
        invoice=params.get("invoice"),
    )
    return account.store.put("invoiceitem", made["id"], made)


async def list_items(call: Call) -> Json:
    params = call.params
    found = (
        one
        for one in call.account.store.all("invoiceitem")
        if params.get("customer") in (None, one["customer"])
        and params.get("invoice") in (None, one["invoice"])
        and params.get("pending") in (None, one["invoice"] is None)
        and is_within(one["date"], params.get("created"))
    )
    return page(found, params, "/v1/invoiceitems")


async def retrieve_item(call: Call) -> Json:
    return _found(call, "invoiceitem")


async def delete_item(call: Call) -> Json:
    item = _found(call, "invoiceitem")
    if item["invoice"] is not None:
        raise Refusal("Invoice items that are on an invoice cannot be deleted.")
    call.account.store.remove("invoiceitem", item["id"])
    return {"id": item["id"], "object": "invoiceitem", "deleted": True}


def subscription_of(invoice: Json) -> str | None:
    """In either version."""
    details = (invoice.get("parent") or {}).get("subscription_details") or {}
    found: str | None = details.get("subscription") or invoice.get("subscription")
    return found


def _found(call: Call, kind: str) -> Json:
    found = call.account.store.get(kind, call.path["id"])
    if found is None:
        raise missing(kind, call.path["id"])
    return found


CALLS = {
    ("GET", "/v1/invoices"): (list_invoices, _LIST_INVOICES),
    ("GET", "/v1/invoices/{id}"): (retrieve_invoice, Members({})),
    ("GET", "/v1/invoices/{id}/lines"): (list_lines, Members(PAGE)),
    ("GET", "/v1/invoice_payments"): (list_payments, _LIST_PAYMENTS),
    ("GET", "/v1/charges/{id}"): (retrieve_charge, Members({})),
    ("GET", "/v1/payment_intents/{id}"): (retrieve_payment_intent, Members({})),
    ("POST", "/v1/invoiceitems"): (create_item, _CREATE_ITEM),
    ("GET", "/v1/invoiceitems"): (list_items, _LIST_ITEMS),
    ("GET", "/v1/invoiceitems/{id}"): (retrieve_item, Members({})),
    ("DELETE", "/v1/invoiceitems/{id}"): (delete_item, Members({})),
}
