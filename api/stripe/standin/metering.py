"""Meters, their events, what takes those back, and summaries of them."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from api.stripe import fixtures
from api.stripe.standin.account import Account
from api.stripe.standin.calls import Call
from api.stripe.standin.listing import page
from api.stripe.standin.parameters import PAGE, TEXT, WHOLE, WORDS, Members, OneOf
from api.stripe.standin.refusals import Refusal, missing
from api.stripe.standin.store import Json

DAY: Final = 86_400
BACK: Final = 35 * DAY
AHEAD: Final = 5 * 60
UNIQUE: Final = DAY
CANCELABLE: Final = DAY
TAKEN_BACK: Final = ("billing.meter_event_adjustment", "invalid_meter_event")  # by us, or by Stripe
WINDOWS: Final = {"minute": 60, "hour": 3_600, "day": DAY}

_CREATE_METER = Members(
    {
        "display_name": TEXT,
        "event_name": TEXT,
        "default_aggregation": Members({"formula": OneOf(("sum", "count", "last"))}, ("formula",)),
        "customer_mapping": Members({"event_payload_key": TEXT, "type": OneOf(("by_id",))}),
        "value_settings": Members({"event_payload_key": TEXT}),
        "event_time_window": OneOf(("day", "hour")),
    },
    ("display_name", "event_name", "default_aggregation"),
)
_LIST_METERS = Members({**PAGE, "status": OneOf(("active", "inactive"))})
_CREATE_EVENT = Members(
    {"event_name": TEXT, "payload": WORDS, "identifier": TEXT, "timestamp": WHOLE}, ("event_name", "payload")
)
_CREATE_ADJUSTMENT = Members(
    {"event_name": TEXT, "type": OneOf(("cancel",)), "cancel": Members({"identifier": TEXT})}, ("event_name", "type")
)
_LIST_SUMMARIES = Members(
    {**PAGE, "customer": TEXT, "start_time": WHOLE, "end_time": WHOLE, "value_grouping_window": OneOf(("day", "hour"))},
    ("customer", "start_time", "end_time"),
)


class Metering:
    """Which customers and meters have a request right now, and how many there were in this second."""

    def __init__(self) -> None:
        self.busy: set[tuple[str, str]] = set()
        self.second: Counter[int] = Counter()
        # Identifiers by meter and customer, so that summaries do not read all that there is.
        self._of: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._indexed = -1

    async def create_event(self, call: Call) -> Json:
        account, params = call.account, call.params
        now = account.now()
        self._pace(account, now)
        meter = _active_meter(account, params["event_name"])
        payload = params["payload"]
        customer = _of_payload(payload, meter["customer_mapping"]["event_payload_key"])
        value = _of_payload(payload, meter["value_settings"]["event_payload_key"])
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal()):
            raise Refusal(
                f"Invalid value '{value}' in the payload: it must be a whole number.",
                code="meter_event_invalid_value",
                param="payload",
            )
        timestamp = params.get("timestamp", now)
        if timestamp < now - BACK:
            raise Refusal(
                "The timestamp must be within the past 35 calendar days.",
                code="timestamp_too_far_in_past",
                param="timestamp",
            )
        if timestamp > now + AHEAD:
            raise Refusal(
                "The timestamp must not be more than 5 minutes in the future.",
                code="timestamp_in_future",
                param="timestamp",
            )
        identifier = params.get("identifier", account.new_id("id"))
        if (meter["id"], customer) in self.busy:
            raise Refusal(
                "This object cannot be accessed right now because another API request or Stripe process is currently "
                "accessing it.",
                HTTPStatus.TOO_MANY_REQUESTS,
                "lock_timeout",
            )
        self.busy.add((meter["id"], customer))
        try:
            await asyncio.sleep(call.slow)
            known = account.store.get("billing.meter_event", identifier)
            if call.is_duplicate or (known is not None and known["created"] > now - UNIQUE):
                raise Refusal(f"An event already exists with identifier {identifier}.", param="identifier")
            if known is not None:  # after a day it is forgotten, and counts beside
                account.store.put("billing.meter_event", f"{identifier}@{known['created']}", known)
            event = fixtures.meter_event(
                identifier, event_name=meter["event_name"], timestamp=timestamp, created=now, payload=payload
            )
            account.store.put("billing.meter_event", identifier, event)
        finally:
            self.busy.discard((meter["id"], customer))
        return event

    async def create_adjustment(self, call: Call) -> Json:
        account, params = call.account, call.params
        await asyncio.sleep(call.slow)
        identifier = params.get("cancel", {}).get("identifier")
        if identifier is None:
            raise Refusal("Missing required param: cancel[identifier].", code="parameter_missing", param="cancel")
        event = account.store.get("billing.meter_event", identifier)
        if event is None or event["event_name"] != params["event_name"]:
            raise Refusal(
                f"No meter event found with identifier {identifier}.",
                code="resource_missing",
                param="cancel[identifier]",
            )
        if event["created"] <= account.now() - CANCELABLE:
            raise Refusal(
                "Meter events can only be canceled within 24 hours of Stripe receiving them.",
                param="cancel[identifier]",
            )
        if account.store.get("billing.meter_event_adjustment", identifier) is not None:
            raise Refusal(f"The meter event {identifier} has already been canceled.", param="cancel[identifier]")
        made = fixtures.meter_event_adjustment(identifier, event_name=params["event_name"])
        return account.store.put("billing.meter_event_adjustment", identifier, made)

    async def summaries(self, call: Call) -> Json:
        account, params = call.account, call.params
        await asyncio.sleep(call.slow)
        meter = _meter(account, call.path["id"])
        start, end = params["start_time"], params["end_time"]
        window = params.get("value_grouping_window", "minute")
        step = WINDOWS[window]
        for name, value in (("start_time", start), ("end_time", end)):
            if value % step:
                raise Refusal(f"{name} must be aligned with {window} boundaries.", param=name)
        if end <= start:
            raise Refusal("end_time must be after start_time.", param="end_time")
        values = self.values_of(account, meter, params["customer"], start, end)
        found = [
            fixtures.meter_event_summary(value, meter=meter["id"], customer=params["customer"], start=since, end=until)
            for since, until, value in _grouped(meter, values, start, end, end - start if window == "minute" else step)
        ]
        return page(found, params, f"/v1/billing/meters/{meter['id']}/event_summaries")

    def values_of(self, account: Account, meter: Json, customer: str, start: int, end: int) -> list[tuple[int, int]]:
        """When, and how much: of events that were not taken back."""
        self._index(account)
        made: list[tuple[int, int]] = []
        for key in self._of[(meter["event_name"], customer)]:
            event = account.store.get("billing.meter_event", key)
            if event is None or any(account.store.get(kind, key) is not None for kind in TAKEN_BACK):
                continue
            if start <= event["timestamp"] < end:
                made.append((event["timestamp"], int(event["payload"][meter["value_settings"]["event_payload_key"]])))
        return made

    def _index(self, account: Account) -> None:
        changes = account.store.changes("billing.meter_event")
        if changes == self._indexed:
            return
        self._of.clear()
        for key, event in account.store.items("billing.meter_event"):
            # The name of the key is the meter's, and customers are all that is no value.
            for value in event["payload"].values():
                self._of[(event["event_name"], value)].append(key)
        self._indexed = changes

    def _pace(self, account: Account, now: int) -> None:
        if self.second and now not in self.second:
            self.second.clear()
        self.second[now] += 1
        if self.second[now] > account.meter_events_a_second:
            raise Refusal("Request rate limit exceeded.", HTTPStatus.TOO_MANY_REQUESTS, "rate_limit")


async def create_meter(call: Call) -> Json:
    account, params = call.account, call.params
    for meter in account.store.all("billing.meter"):
        if meter["event_name"] == params["event_name"] and meter["status"] == "active":
            raise Refusal(f"An active meter already exists for event_name {params['event_name']}.", param="event_name")
    made = fixtures.meter(
        account.new_id("mtr"),
        event_name=params["event_name"],
        formula=params["default_aggregation"]["formula"],
        created=account.now(),
        display_name=params["display_name"],
    )
    made["customer_mapping"] |= params.get("customer_mapping", {})
    made["value_settings"] |= params.get("value_settings", {})
    return account.store.put("billing.meter", made["id"], made)


async def list_meters(call: Call) -> Json:
    wanted = call.params.get("status")
    found = (meter for meter in call.account.store.all("billing.meter") if wanted in (None, meter["status"]))
    return page(found, call.params, "/v1/billing/meters")


async def retrieve_meter(call: Call) -> Json:
    return _meter(call.account, call.path["id"])


async def deactivate_meter(call: Call) -> Json:
    meter = _meter(call.account, call.path["id"])
    now = call.account.now()
    made = meter | {"status": "inactive", "updated": now, "status_transitions": {"deactivated_at": now}}
    return call.account.store.put("billing.meter", meter["id"], made)


async def reactivate_meter(call: Call) -> Json:
    meter = _meter(call.account, call.path["id"])
    made = meter | {
        "status": "active",
        "updated": call.account.now(),
        "status_transitions": {"deactivated_at": None},
    }
    return call.account.store.put("billing.meter", meter["id"], made)


def _meter(account: Account, id: str) -> Json:
    found = account.store.get("billing.meter", id)
    if found is None:
        raise missing("billing.meter", id)
    return found


def _active_meter(account: Account, event_name: str) -> Json:
    for meter in account.store.all("billing.meter"):
        if meter["event_name"] == event_name and meter["status"] == "active":
            return meter
    raise Refusal(
        f"No active meter found with event_name {event_name}.", HTTPStatus.BAD_REQUEST, "no_meter", "event_name"
    )


def _of_payload(payload: dict[str, str], key: str) -> str:
    if not payload.get(key):
        raise Refusal(f"Missing required payload key: {key}.", code="parameter_missing", param=f"payload[{key}]")
    return payload[key]


def _grouped(
    meter: Json, values: list[tuple[int, int]], start: int, end: int, step: int
) -> Iterator[tuple[int, int, float]]:
    """Windows in which something was counted; without windows the whole time, if there was."""
    windows: dict[int, list[int]] = defaultdict(list)
    for at, value in sorted(values):
        windows[start + (at - start) // step * step].append(value)
    formula = meter["default_aggregation"]["formula"]
    for since in sorted(windows):
        counted = windows[since]
        made = sum(counted) if formula == "sum" else len(counted) if formula == "count" else counted[-1]
        yield since, min(since + step, end), float(made)


CALLS = {
    ("POST", "/v1/billing/meters"): (create_meter, _CREATE_METER),
    ("GET", "/v1/billing/meters"): (list_meters, _LIST_METERS),
    ("GET", "/v1/billing/meters/{id}"): (retrieve_meter, Members({})),
    ("POST", "/v1/billing/meters/{id}/deactivate"): (deactivate_meter, Members({})),
    ("POST", "/v1/billing/meters/{id}/reactivate"): (reactivate_meter, Members({})),
}


def calls_of(metering: Metering) -> dict[tuple[str, str], Any]:
    return {
        ("POST", "/v1/billing/meter_events"): (metering.create_event, _CREATE_EVENT),
        ("POST", "/v1/billing/meter_event_adjustments"): (metering.create_adjustment, _CREATE_ADJUSTMENT),
        ("GET", "/v1/billing/meters/{id}/event_summaries"): (metering.summaries, _LIST_SUMMARIES),
    }
