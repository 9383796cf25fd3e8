"""Customers and their subscriptions, to look at."""

from __future__ import annotations

from api.stripe import fixtures
from api.stripe.standin.calls import Call
from api.stripe.standin.listing import page
from api.stripe.standin.parameters import PAGE, RANGE, TEXT, WORDS, Members
from api.stripe.standin.refusals import missing
from api.stripe.standin.store import Json

_CUSTOMER = Members({"email": TEXT, "name": TEXT, "description": TEXT, "metadata": WORDS, "phone": TEXT})
_LIST_SUBSCRIPTIONS = Members({**PAGE, "customer": TEXT, "status": TEXT, "price": TEXT, "created": RANGE})
_ENDED = ("canceled", "incomplete_expired")


async def create_customer(call: Call) -> Json:
    account = call.account
    made = fixtures.customer(account.new_id("cus"), **{"email": None, **call.params}, created=account.now())
    account.store.put("customer", made["id"], made)
    await account.send(fixtures.event("customer.created", made, created=account.now(), id=account.new_id("evt")))
    return made


async def update_customer(call: Call) -> Json:
    account, known = call.account, _customer(call)
    changed = dict(call.params)
    if "metadata" in changed:
        changed["metadata"] = known["metadata"] | changed["metadata"]
    made = account.store.put("customer", known["id"], known | changed)
    previous = {name: known[name] for name in changed if known[name] != made[name]}
    await account.send(
        fixtures.event("customer.updated", made, created=account.now(), previous=previous, id=account.new_id("evt"))
    )
    return made


async def retrieve_customer(call: Call) -> Json:
    """One that is deleted is said to be, and is no error."""
    return call.account.store.get("deleted_customer", call.path["id"]) or _customer(call)


async def delete_customer(call: Call) -> Json:
    account, known = call.account, _customer(call)
    account.store.remove("customer", known["id"])
    account.store.put("deleted_customer", known["id"], fixtures.deleted_customer(known["id"]))
    await account.send(fixtures.event("customer.deleted", known, created=account.now(), id=account.new_id("evt")))
    return fixtures.deleted_customer(known["id"])


async def list_customers(call: Call) -> Json:
    email = call.params.get("email")
    found = (one for one in call.account.store.all("customer") if email in (None, one["email"]))
    return page(found, call.params, "/v1/customers")


async def retrieve_subscription(call: Call) -> Json:
    found = call.account.store.get("subscription", call.path["id"])
    if found is None:
        raise missing("subscription", call.path["id"])
    return found


async def list_subscriptions(call: Call) -> Json:
    """Those that are canceled only when they are asked for, as Stripe does it."""
    params = call.params
    status = params.get("status")
    found = (
        one
        for one in call.account.store.all("subscription")
        if params.get("customer") in (None, one["customer"])
        and (one["status"] not in _ENDED if status is None else status in ("all", one["status"]))
        and ("price" not in params or any(item["price"]["id"] == params["price"] for item in one["items"]["data"]))
    )
    return page(found, params, "/v1/subscriptions")


def _customer(call: Call) -> Json:
    found = call.account.store.get("customer", call.path["id"])
    if found is None:
        raise missing("customer", call.path["id"])
    return found


CALLS = {
    ("POST", "/v1/customers"): (create_customer, _CUSTOMER),
    ("GET", "/v1/customers"): (list_customers, Members({**PAGE, "email": TEXT, "created": RANGE})),
    ("GET", "/v1/customers/{id}"): (retrieve_customer, Members({})),
    ("POST", "/v1/customers/{id}"): (update_customer, _CUSTOMER),
    ("DELETE", "/v1/customers/{id}"): (delete_customer, Members({})),
    ("GET", "/v1/subscriptions"): (list_subscriptions, _LIST_SUBSCRIPTIONS),
    ("GET", "/v1/subscriptions/{id}"): (retrieve_subscription, Members({})),
}
