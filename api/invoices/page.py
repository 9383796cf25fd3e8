"""An invoice as a page to print. It holds no script, and asks nobody for anything: its one style sheet is in it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_UP, Decimal, localcontext
from hashlib import sha256
from importlib.resources import files
from typing import Final

from jinja2 import Environment, StrictUndefined, pass_context
from jinja2.runtime import Context

from api.invoices.document import Document, Line, Price, Tier
from api.invoices.in_force import days_in_force
from api.invoices.numbers import money, quantity

_CSS: Final = files("api.invoices").joinpath("page.css").read_text(encoding="utf-8")
_CSS_HASH: Final = b64encode(sha256(_CSS.encode()).digest()).decode()

# Names and addresses on it are tenants' own words. Were one of them not escaped, the browser would still run nothing.
HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_CSS_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_DIGITS: Final = 1000  # Python's arithmetic would round to 28


@dataclass(frozen=True)
class Part:
    """A row below a line: how a part of its amount came about."""

    label: str
    quantity: str
    unit_price: str
    amount: str


def page(document: Document) -> str:
    with localcontext(prec=_DIGITS):
        return _TEMPLATE.render(it=document, currency=document.currency.upper(), css=_CSS)


@pass_context
def _money(context: Context, cents: Decimal | int) -> str:
    return money(Decimal(cents), context["it"].minor_units)


def _day(day: date) -> str:
    return f"{day.day} {day:%b %Y}"


@pass_context
def _in_force(context: Context, line: Line) -> str:
    """Of which plan its price is, and when that was in force, where that was not all the time."""
    price = line.price or Price()
    days = days_in_force(price, line.belongs_to or context["it"].period)
    plan = f"Trial of {price.plan}" if price.trial else price.plan if days and line.kind != "fee" else None
    if price.by_stripe:
        plan = "Charged with the subscription at Stripe"
    return ": ".join(part for part in (plan, days) if part)


@pass_context
def _parts(context: Context, line: Line) -> list[Part]:
    """None where quantity, unit price and amount say it all."""
    minor_units = context["it"].minor_units
    price = line.price or Price()
    rest = line.exact_cents - sum((tier.amount_cents for tier in line.tiers), Decimal(0))
    has_limits = line.kind == "usage" and (price.minimum_cents, price.maximum_cents) != (None, None)
    by_limits = rest.quantize(Decimal(1), ROUND_HALF_UP) if has_limits else Decimal(0)
    if not by_limits and len(line.tiers) < 2 and price.model == "per_unit" and not any(t.included for t in line.tiers):
        return []
    parts = [_part(tier, price, minor_units) for tier in line.tiers]
    if by_limits:
        limit, name = (
            (price.minimum_cents, "Minimum charge") if by_limits > 0 else (price.maximum_cents, "Maximum charge")
        )
        label = f"{name} of {money(limit, minor_units)}" if limit is not None else name
        parts.append(Part(label, "", "", money(by_limits, minor_units)))
    return parts


def _part(tier: Tier, price: Price, minor_units: int) -> Part:
    unit_price = money(tier.unit_amount_cents, minor_units) if tier.unit_amount_cents is not None else ""
    return Part(
        ", ".join(_label(tier, price, minor_units)),
        quantity(tier.quantity),
        "" if tier.included else unit_price,
        money(tier.amount_cents, minor_units),
    )


def _label(tier: Tier, price: Price, minor_units: int) -> Iterator[str]:
    if tier.included:
        yield "Included"
    elif tier.packages is not None and tier.package_size is not None:
        yield f"{quantity(tier.packages)} package{'' if tier.packages == 1 else 's'} of {quantity(tier.package_size)}"
    elif price.model == "flat":
        yield "Flat charge"
    elif price.model == "volume":
        yield "All units at the price of the whole quantity"
    elif tier.starts:
        yield f"Above {quantity(tier.starts)}, up to {quantity(tier.ends)}"
    else:
        yield f"Up to {quantity(tier.ends)}"
    if tier.flat_amount_cents and price.model != "flat":
        yield f"with a flat charge of {money(tier.flat_amount_cents, minor_units)}"


def _template_environment() -> Environment:
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(money=_money, quantity=quantity, day=_day, in_force=_in_force, parts=_parts)
    return made


_TEMPLATE: Final = _template_environment().from_string(
    files("api.invoices").joinpath("page.html").read_text(encoding="utf-8")
)
