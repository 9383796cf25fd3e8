"""Products, prices and coupons."""

from __future__ import annotations

from api.stripe import fixtures
from api.stripe.standin.calls import Call
from api.stripe.standin.listing import page
from api.stripe.standin.parameters import FLAG, PAGE, TEXT, WHOLE, WORDS, ListOf, Members, OneOf
from api.stripe.standin.refusals import missing
from api.stripe.standin.store import Json

_CREATE_PRODUCT = Members(
    {"id": TEXT, "name": TEXT, "description": TEXT, "metadata": WORDS, "active": FLAG, "unit_label": TEXT}, ("name",)
)
_CREATE_PRICE = Members(
    {
        "product": TEXT,
        "product_data": Members({"name": TEXT, "metadata": WORDS}, ("name",)),
        "currency": TEXT,
        "unit_amount": WHOLE,
        "unit_amount_decimal": TEXT,
        "recurring": Members(
            {
                "interval": OneOf(("day", "week", "month", "year")),
                "interval_count": WHOLE,
                "usage_type": OneOf(("licensed", "metered")),
                "meter": TEXT,
            },
            ("interval",),
        ),
        "billing_scheme": OneOf(("per_unit", "tiered")),
        "lookup_key": TEXT,
        "nickname": TEXT,
        "metadata": WORDS,
        "active": FLAG,
        "tax_behavior": TEXT,
    },
    ("currency",),
)
_LIST_PRICES = Members({**PAGE, "product": TEXT, "active": FLAG, "lookup_keys": ListOf(TEXT), "currency": TEXT})


async def create_product(call: Call) -> Json:
    params = dict(call.params)
    id = params.pop("id", call.account.new_id("prod"))
    made = fixtures.product(id, params.pop("name"), created=call.account.now(), **params)
    return call.account.store.put("product", id, made)


async def create_price(call: Call) -> Json:
    account, params = call.account, dict(call.params)
    recurring = params.pop("recurring", {"interval": "month"})
    data = params.pop("product_data", None)
    if data is not None:
        made = fixtures.product(account.new_id("prod"), created=account.now(), **data)
        params["product"] = account.store.put("product", made["id"], made)["id"]
    product = params.pop("product", "prod_none")
    made = fixtures.price(
        account.new_id("price"),
        product=product,
        interval=recurring["interval"],
        meter=recurring.get("meter"),
        unit_amount=params.pop("unit_amount", None),
        created=account.now(),
        **params,
    )
    return account.store.put("price", made["id"], made)


async def list_prices(call: Call) -> Json:
    params = call.params
    found = (
        price
        for price in call.account.store.all("price")
        if params.get("product") in (None, price["product"])
        and params.get("active") in (None, price["active"])
        and params.get("currency") in (None, price["currency"])
        and ("lookup_keys" not in params or price["lookup_key"] in params["lookup_keys"])
    )
    return page(found, params, "/v1/prices")


async def list_products(call: Call) -> Json:
    return page(call.account.store.all("product"), call.params, "/v1/products")


async def retrieve_price(call: Call) -> Json:
    return _found(call, "price")


async def retrieve_product(call: Call) -> Json:
    return _found(call, "product")


async def retrieve_coupon(call: Call) -> Json:
    return _found(call, "coupon")


def _found(call: Call, kind: str) -> Json:
    found = call.account.store.get(kind, call.path["id"])
    if found is None:
        raise missing(kind, call.path["id"])
    return found


CALLS = {
    ("POST", "/v1/products"): (create_product, _CREATE_PRODUCT),
    ("GET", "/v1/products"): (list_products, Members({**PAGE, "active": FLAG})),
    ("GET", "/v1/products/{id}"): (retrieve_product, Members({})),
    ("POST", "/v1/prices"): (create_price, _CREATE_PRICE),
    ("GET", "/v1/prices"): (list_prices, _LIST_PRICES),
    ("GET", "/v1/prices/{id}"): (retrieve_price, Members({})),
    ("GET", "/v1/coupons/{id}"): (retrieve_coupon, Members({})),
}
