"""The end of a subscription's period: an invoice of its fee, of what meters have counted, and of items that waited."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from api.stripe import fixtures
from api.stripe.standin.account import Account
from api.stripe.standin.checkout import pay
from api.stripe.standin.metering import Metering
from api.stripe.standin.store import Json


def bill(account: Account, metering: Metering, subscription: Json, *, start: int, end: int) -> list[Json]:
    """The invoice of the time from `start` to `end`, paid. Returns its events, as they happen."""
    id, now = account.new_id("in"), account.now()
    lines = [
        *(_of_item(account, metering, subscription, item, id, start, end) for item in subscription["items"]["data"]),
        *_of_waiting_items(account, subscription, id),
    ]
    invoice = fixtures.invoice(
        id,
        customer=subscription["customer"],
        subscription=subscription["id"],
        status="paid",
        number=account.new_id("GL")[:11].upper(),
        lines=lines,
        start=start,
        end=end,
        created=now,
        currency=subscription["currency"],
    )
    account.store.put("invoice", id, invoice)
    if invoice["total"] > 0:
        pay(account, invoice)
    opened = invoice | {"status": "open", "amount_paid": 0, "amount_remaining": invoice["amount_due"]}
    return [
        fixtures.event(type, object, created=now, id=account.new_id("evt"))
        for type, object in (("invoice.finalized", opened), ("invoice.paid", invoice))
    ]


def _of_item(
    account: Account, metering: Metering, subscription: Json, item: Json, invoice: str, start: int, end: int
) -> Json:
    price = item["price"]
    meter = account.store.get("billing.meter", price["recurring"]["meter"] or "")
    if meter is None:
        quantity, since, until = 1, end, end + (end - start)  # fees are for the time to come
    else:
        values = metering.values_of(account, meter, subscription["customer"], start, end)
        quantity, since, until = sum(value for _, value in values), start, end
    unit = Decimal(price["unit_amount_decimal"] or "0")
    return fixtures.invoice_line(
        account.new_id("il"),
        invoice=invoice,
        amount=int((quantity * unit).quantize(Decimal(1), ROUND_HALF_UP)),
        description=f"{quantity} x {price['nickname'] or price['product']}",
        price=price,
        quantity=quantity,
        start=since,
        end=until,
        subscription=subscription["id"],
        currency=subscription["currency"],
    )


def _of_waiting_items(account: Account, subscription: Json, invoice: str) -> list[Json]:
    lines: list[Json] = []
    for item in account.store.all("invoiceitem"):
        of = ((item["parent"] or {}).get("subscription_details") or {}).get("subscription")
        if item["invoice"] is not None or item["customer"] != subscription["customer"]:
            continue
        if of not in (None, subscription["id"]):
            continue
        account.store.put("invoiceitem", item["id"], item | {"invoice": invoice})
        lines.append(
            fixtures.invoice_line(
                account.new_id("il"),
                invoice=invoice,
                amount=item["amount"],
                description=item["description"] or "",
                start=item["period"]["start"],
                end=item["period"]["end"],
                subscription=of,
                invoice_item=item["id"],
                currency=item["currency"],
                metadata=item["metadata"],
            )
        )
    return lines
