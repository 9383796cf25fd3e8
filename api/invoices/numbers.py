"""Numbers as they are printed: exact, whatever their size, with thousands apart."""

from __future__ import annotations

from decimal import Decimal


def in_units(cents: Decimal, minor_units: int) -> Decimal:
    """Of minor units, units of the currency. The point is moved; nothing is rounded, as arithmetic would."""
    sign, digits, exponent = cents.as_tuple()
    assert isinstance(exponent, int)  # noqa: S101
    return Decimal((sign, digits, exponent - minor_units))


def money(cents: Decimal, minor_units: int, *, thousands: str = ",") -> str:
    """`1,234.50`: with the decimals of the currency, and more where a unit price is a fraction of a minor unit."""
    whole, _, fraction = f"{in_units(cents, minor_units):,f}".partition(".")
    fraction = fraction.rstrip("0").ljust(minor_units, "0")
    text = whole.replace(",", thousands) + (f".{fraction}" if fraction else "")
    return text.removeprefix("-") if not cents else text


def quantity(number: Decimal) -> str:
    whole, _, fraction = f"{number:,f}".partition(".")
    fraction = fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole
