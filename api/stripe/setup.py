"""Meters at Stripe: one for each of ours that has a price, under its code, and ours to know by its id.

Safe to run again and again: a meter that is there is found by the name of its events. What Stripe adds up are whole
numbers that we send it, whatever our meter itself does: so all of them are sums.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.rows import class_row

from api.stripe.client import Stripe
from api.stripe.failed import StripeCommandFailed
from api.stripe.failures import StripeError

if TYPE_CHECKING:
    from stripe.billing import Meter
    from stripe.params.billing import MeterListParams

PAGE: Final = 100
# As api/stripe/reporting.py sends them; they are Stripe's own defaults, too.
CUSTOMER_KEY: Final = "stripe_customer_id"
VALUE_KEY: Final = "value"


@dataclass(frozen=True, slots=True)
class PricedMeter:
    """A meter of ours, and what is written down of it at Stripe: null before it was set up."""

    meter_code: str
    unit: str
    registered_id: str | None
    registered_name: str | None


@dataclass(frozen=True, slots=True)
class SetUp:
    """What became of a meter. `problem` is why it cannot be used; null where it can."""

    meter_code: str
    event_name: str
    id: str | None
    what: str
    problem: str | None = None


async def set_up_account(secret_key: str, base: str | None, url: str, *, dry_run: bool) -> list[SetUp]:
    """Make what is missing at Stripe, and write down what it has; with dry_run, only say what would be made. `url` is
    that of goldleaves_migrator. Raises StripeCommandFailed.
    """
    stripe = Stripe(secret_key, base)
    try:
        with psycopg.connect(url, application_name="goldleaves stripe setup", autocommit=True) as conn:
            meters = _priced_meters(conn)
            there = await _meters_at_stripe(stripe) if meters else {}
            found = []
            for meter in meters:
                found.append(await _set_up(stripe, meter, there, dry_run=dry_run))
                if not dry_run:
                    _register(conn, found[-1])
    except StripeError as error:
        raise StripeCommandFailed(f"Stripe: {str(error).rstrip('.')}. Run it again: what was made is found.") from None
    finally:
        await stripe.close()
    return found


def _priced_meters(conn: psycopg.Connection) -> list[PricedMeter]:
    with conn.cursor(row_factory=class_row(PricedMeter)) as cursor:
        return cursor.execute("select * from stripe.priced_meters()").fetchall()


def _register(conn: psycopg.Connection, meter: SetUp) -> None:
    """At once, so that what was made is reported also when the next one cannot be made."""
    if meter.problem is None:
        told = [{"meter_code": meter.meter_code, "id": meter.id, "event_name": meter.event_name}]
        conn.execute("select stripe.register_meters(%s)", [json.dumps(told)])


async def _meters_at_stripe(stripe: Stripe) -> dict[str, Meter]:
    """By the name of their events. Of several that have one, the active one: there is only one of these."""
    found: dict[str, Meter] = {}
    after: str | None = None
    while True:
        params: MeterListParams = {"limit": PAGE}
        if after is not None:
            params["starting_after"] = after
        page = await stripe.ask(lambda s, params=params: s.v1.billing.meters.list_async(params))  # type: ignore[misc]
        for meter in page.data:
            if meter.status == "active" or meter.event_name not in found:
                found[meter.event_name] = meter
        if not page.has_more or not page.data:
            return found
        after = page.data[-1].id


async def _set_up(stripe: Stripe, meter: PricedMeter, there: dict[str, Meter], *, dry_run: bool) -> SetUp:
    name = meter.registered_name or meter.meter_code
    found = there.get(name)
    if found is None:
        if dry_run:
            return SetUp(meter.meter_code, name, None, "would be made")
        made = await stripe.ask(
            lambda s: s.v1.billing.meters.create_async(
                {
                    "display_name": meter.meter_code,
                    "event_name": name,
                    "default_aggregation": {"formula": "sum"},
                    "customer_mapping": {"event_payload_key": CUSTOMER_KEY, "type": "by_id"},
                    "value_settings": {"event_payload_key": VALUE_KEY},
                }
            )
        )
        return SetUp(meter.meter_code, name, made.id, "made")
    problem = _problem(found)
    if problem is not None:
        return SetUp(meter.meter_code, name, found.id, "cannot be used", problem)
    if found.status != "active":
        if dry_run:
            return SetUp(meter.meter_code, name, found.id, "would be made active again")
        await stripe.ask(lambda s: s.v1.billing.meters.reactivate_async(found.id))
        return SetUp(meter.meter_code, name, found.id, "made active again")
    if meter.registered_id == found.id:
        return SetUp(meter.meter_code, name, found.id, "as it was")
    return SetUp(meter.meter_code, name, found.id, "would be written down" if dry_run else "found")


def _problem(meter: Meter) -> str | None:
    """What is wrong with a meter that somebody else has made. Stripe lets nobody change it."""
    if meter.default_aggregation.formula != "sum":
        return f"it is a {meter.default_aggregation.formula}, and what we send is to be added up"
    if meter.customer_mapping.event_payload_key != CUSTOMER_KEY:
        return f"it reads the customer from {meter.customer_mapping.event_payload_key}, and not from {CUSTOMER_KEY}"
    if meter.value_settings.event_payload_key != VALUE_KEY:
        return f"it reads the value from {meter.value_settings.event_payload_key}, and not from {VALUE_KEY}"
    return None
