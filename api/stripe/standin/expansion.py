"""`expand[]=customer`: whole objects where Stripe has only their ids."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from api.stripe.fixtures.shape import listed
from api.stripe.standin.refusals import Refusal
from api.stripe.standin.store import Json, Store

_KINDS = {
    "customer": "customer",
    "subscription": "subscription",
    "invoice": "invoice",
    "latest_invoice": "invoice",
    "charge": "charge",
    "latest_charge": "charge",
    "payment_intent": "payment_intent",
    "product": "product",
}


def expanded(store: Store, answer: Json, paths: list[str]) -> Json:
    if not paths:
        return answer
    answer = deepcopy(answer)
    for path in paths:
        _expand(store, answer, path.split("."), path)
    return answer


def _expand(store: Store, value: Any, path: list[str], whole: str) -> None:
    name, *rest = path
    if isinstance(value, list):
        for inner in value:
            _expand(store, inner, path, whole)
        return
    if not isinstance(value, dict):
        return
    if name == "payments" and value.get("object") == "invoice":
        payments = [payment for payment in store.all("invoice_payment") if payment["invoice"] == value["id"]]
        value["payments"] = deepcopy(listed(payments, f"/v1/invoice_payments?invoice={value['id']}"))
    elif name in _KINDS and name in value:
        if isinstance(value[name], str):
            value[name] = deepcopy(store.get(_KINDS[name], value[name])) or value[name]
    elif name not in value:
        raise Refusal(f"This property cannot be expanded ({whole}).", param="expand[0]")
    if rest:
        _expand(store, value[name], rest, whole)
