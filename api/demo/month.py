"""Last month as money: its prices, its invoice before and after it is closed, a mistake that is mended, the proof."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from rich.console import Console

from api.demo.people import Cast, DemoError
from api.demo.stage import clip, exact, message_of, money, scene, table_of
from api.demo.venue import Venue

AURORA_TIMEZONE = "America/Los_Angeles"
PAGES, MESSAGES = "demo.pages", "demo.messages"

# Fixed, and made once: whoever plays the story again finds them there.
METERS = (
    {"code": PAGES, "unit": "page", "description": "Pages scanned", "event_name": PAGES},
    {"code": MESSAGES, "unit": "message", "description": "Messages sent", "event_name": MESSAGES},
)
PRICES = (
    {
        "meter": PAGES,
        "model": "graduated",
        "tiers": [{"up_to": 1000, "unit_amount_cents": 2}, {"up_to": None, "unit_amount_cents": 0.5}],
    },
    {"meter": MESSAGES, "model": "package", "package_size": 100, "unit_amount_cents": 150},
)
EVENTS = {"api.request": (140, 1), PAGES: (40, 31), MESSAGES: (20, 12)}


def set_prices(console: Console, cast: Cast) -> None:
    scene(console, 4, "A price list, in three models")
    known = {meter["code"] for meter in cast.staff.get("/api/v1/meters", select="code")}
    found = cast.staff.get("/api/v1/prices", select="meter,unit_amount_cents", currency="eq.usd")
    priced = {price["meter"]: price["unit_amount_cents"] for price in found}
    for meter in METERS:
        if meter["code"] not in known:
            cast.staff.post("/api/v1/rpc/create_meter", meter)
    for price in PRICES:
        if price["meter"] not in priced:
            cast.staff.post("/api/v1/rpc/create_price", {**price, "effective_from": "2020-01-01T00:00:00Z"})

    table = table_of("meter", "model", "price")
    table.add_row("api.request", "per unit", f"{money(priced['api.request'])} a request")
    table.add_row(PAGES, "graduated", "2¢ a page up to 1,000, then 0.5¢")
    table.add_row(MESSAGES, "package", "$1.50 for each 100 that were begun")
    console.print(table)


def last_month() -> datetime:
    """Its first moment at Aurora's."""
    this_month = datetime.now(ZoneInfo(AURORA_TIMEZONE)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (this_month - timedelta(days=1)).replace(day=1)


def usage_of_last_month(tag: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{tag}-{name}-{number}",
            "event": name,
            "quantity": quantity,
            "time": (last_month() + timedelta(hours=number)).astimezone(UTC).isoformat(),
        }
        for name, (events, quantity) in EVENTS.items()
        for number in range(events)
    ]


def close_last_month(console: Console, cast: Cast, venue: Venue, late: dict[str, Any]) -> dict[str, Any]:
    """Returns the invoice."""
    scene(console, 6, "Last month: previewed, and then closed for ever")
    period = {"period_start": last_month().date().isoformat()}
    preview = cast.ada.get("/api/v1/rpc/preview_invoice", **period)
    invoice: dict[str, Any] = cast.staff.post("/api/v1/rpc/finalize_period", period)
    lines = cast.ada.get("/api/v1/invoice_lines", invoice_id=f"eq.{invoice['id']}", order="line_number")

    heading = f"Invoice {invoice['number']} of Aurora Legal for the month from {period['period_start']}"
    console.print(f"[bold]{heading}[/]", highlight=False)
    table = table_of("line", "meter", "quantity", "unit", "amount", show_footer=True)
    for line in lines:
        table.add_row(
            str(line["line_number"]),
            line["meter"] or line["description"],
            f"{line['quantity']:,}",
            line["unit"],
            money(line["amount_cents"]),
        )
    table.columns[3].footer, table.columns[4].footer = "total", money(invoice["total_cents"])
    for number in (2, 4):
        table.columns[number].justify = "right"
    console.print(table, "")
    _require_sum(invoice, lines)
    if preview["total_cents"] != invoice["total_cents"]:
        raise DemoError(f"the preview said {preview['total_cents']}, and the invoice says {invoice['total_cents']}")
    console.print("Ada's preview said the same, to the cent. From now on:\n")
    _show_refusals(console, cast, venue, late, period)
    return invoice


def _require_sum(invoice: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Requests by the price that the line names, the rest by hand."""
    used = {name: events * quantity for name, (events, quantity) in EVENTS.items()}
    found = {line["meter"]: line["amount_cents"] for line in lines}
    by_hand = {PAGES: 1000 * 2 + (used[PAGES] - 1000) * exact(0.5), MESSAGES: -(-used[MESSAGES] // 100) * 150}
    [requests] = [line for line in lines if line["meter"] == "api.request"]
    difference = requests["amount_cents"] - used["api.request"] * exact(requests["unit_amount_cents"])
    if (
        any(found[meter] != amount for meter, amount in by_hand.items())
        or abs(difference) > exact(0.5)
        or invoice["total_cents"] != sum(found.values())
    ):
        raise DemoError(f"the invoice does not add up: {json.dumps([invoice, lines])}")


def _show_refusals(console: Console, cast: Cast, venue: Venue, late: dict[str, Any], period: dict[str, str]) -> None:
    answer = cast.backend.post("/v1/events", {"events": [dict(late, id=f"{cast.tag}-late")]})
    again = cast.staff.ask("POST", "/api/v1/rpc/recalculate_period", json=period)
    refusals = [
        ("a late event, POST /v1/events", "rejected", message_of(answer["rejected"][0])),
        ("rpc/recalculate_period", str(again.status_code), again.json()["message"]),
    ]
    if venue.superuser_url is not None:
        who = "a superuser at psql: update metering.usage_events …"
        refusals.append((who, "error", _update_in_sql(venue.superuser_url, cast.aurora["id"])))
    table = table_of("tries to change it", "answer", "")
    for what, said, message in refusals:
        if not message.startswith("BILLING_PERIOD_LOCKED: "):
            raise DemoError(f"{what} was not refused: {message}")
        table.add_row(what, said, clip(message, 110))
    console.print(table)
    if venue.superuser_url is None:
        console.print(
            "\nA superuser at psql would be refused in the same way. That try is left out: ADMIN_DATABASE_URL is not "
            "set, or is no superuser's."
        )


def _update_in_sql(superuser_url: str, organization_id: str) -> str:
    with psycopg.connect(superuser_url) as connection:
        try:
            connection.execute(
                "update metering.usage_events set quantity = 0 where organization_id = %s", (organization_id,)
            )
        except psycopg.Error as error:
            return error.diag.message_primary or str(error)
        finally:
            connection.rollback()
    return "the update went through"


def mend_mistake(console: Console, cast: Cast, invoice: dict[str, Any]) -> None:
    scene(console, 7, "Two hundred pages were blank: a credit note")
    [line] = cast.ada.get("/api/v1/invoice_lines", invoice_id=f"eq.{invoice['id']}", meter=f"eq.{PAGES}")
    note = cast.staff.post(
        "/api/v1/rpc/create_credit_note",
        {
            "invoice_id": invoice["id"],
            "lines": [{"line_number": line["line_number"], "amount_cents": 100}],
            "reason": "200 pages were blank",
            "reference": f"{cast.tag}-blank",
        },
    )
    [now] = cast.ada.get("/api/v1/invoices", id=f"eq.{invoice['id']}")
    table = table_of("document", "amount", "")
    table.columns[1].justify = "right"
    table.add_row(f"invoice {now['number']}", money(now["total_cents"]), "does not change")
    table.add_row(f"credit note {note['number']}", money(-note["total_cents"]), "200 pages were blank")
    table.add_row("left to pay", money(now["remaining_cents"]), now["status"])
    console.print(table)
    if now["remaining_cents"] != invoice["total_cents"] - 100:
        raise DemoError(f"the credit note does not show: {json.dumps([note, now])}")


def prove(console: Console, cast: Cast, venue: Venue, invoice: dict[str, Any], sent: dict[str, Any]) -> None:
    scene(console, 8, "Proved from the events, and printed")
    proof = cast.ada.get("/api/v1/rpc/verify_invoice", invoice_id=invoice["id"])
    if not proof["verified"]:
        raise DemoError(f"the invoice is not what its events come to: {json.dumps(proof)}")
    console.print(
        f"Rated again from {proof['events']} events: all as it was issued. SHA-256 {proof['digest'][:16]}…",
        highlight=False,
    )
    if venue.superuser_url is not None:
        console.print("\nA superuser switches triggers off and changes one event (and takes it back here):\n")
        named = _tamper_in_sql(venue.superuser_url, cast.aurora["id"], sent["id"], invoice["id"])
        first = {what: (was, now) for what, was, now in reversed(named)}
        table = table_of("it names", "was", "is now")
        table.add_row("the event", *first["event"])
        table.add_row("the total", *(money(float(cents)) for cents in first["total"]))
        console.print(table)
        console.print(f"\n… and {len(named) - len(table.rows)} more things that follow from it.")
    page = venue.papers / f"invoice-{cast.aurora['slug']}-{invoice['number']}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    answer = cast.ada.ask("GET", f"/api/billing/invoices/{invoice['id']}.html")
    if not answer.is_success:
        raise DemoError(f"the printed invoice: {answer.status_code} {answer.text}")
    page.write_bytes(answer.content)
    console.print(f"\nTo look at in a browser, and to print: {page}", markup=False, highlight=False, soft_wrap=True)


def _tamper_in_sql(
    superuser_url: str, organization_id: str, event_id: str, invoice_id: str
) -> list[tuple[str, str, str]]:
    """What verification names of it. Nothing of this is committed."""
    with psycopg.connect(superuser_url) as connection:
        try:
            connection.execute("set local session_replication_role = replica")
            connection.execute(
                "update metering.usage_events set quantity = 100 where organization_id = %s and idempotency_key = %s",
                (organization_id, event_id),
            )
            connection.execute("set local session_replication_role = origin")
            named = connection.execute(
                "select what, expected, found from billing.verify_invoice(%s, %s)", (organization_id, invoice_id)
            ).fetchall()
        finally:
            connection.rollback()
    if not any(what == "event" for what, _, _ in named):
        raise DemoError(f"a tampered event went unseen: {named}")
    return named
