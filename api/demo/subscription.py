"""Kauri Chambers takes a subscription: a trial, an upgrade in the middle of a month, a quota that refuses, an alert."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console

from api.demo.people import Cast, DemoError, Person
from api.demo.stage import clip, exact, money, scene, table_of
from api.demo.venue import Venue

KAURI_TIMEZONE = "Pacific/Auckland"
SEARCHES = "demo.searches"
TRIAL_DAYS = 14
LIMIT = 1000

# Fixed, and made once. Not public, since whoever plays the story may show a page of plans to others.
PLANS: dict[str, dict[str, Any]] = {
    "demo_solo": {"name": "Solo", "fee": 2900, "included": 200, "unit": 5},
    "demo_chambers": {"name": "Chambers", "fee": 9900, "included": 1000, "unit": 2},
}
BEFORE, AFTER = 300, 900


def subscribe(console: Console, cast: Cast, venue: Venue) -> None:
    scene(console, 9, "Kauri subscribes: a trial, an upgrade in mid-month, a quota")
    organization = cast.kauri["slug"]
    with (
        venue.person(f"backend-{cast.tag}", role="service", organization=organization) as backend,
        venue.person(f"staff-{cast.tag}", role="platform_admin", organization=organization) as staff,
    ):
        _offer_plans(staff)
        start, half, end = month_in_halves()
        _play_last_month(staff, backend, start, half, cast.tag)
        _show_phases(console, cast.kiri)
        _show_bill(console, cast.kiri, start)
        _reach_quota(console, cast.kiri, backend, cast.tag, end)


def month_in_halves() -> tuple[datetime, datetime, datetime]:
    """Start, middle and end of Kauri's last month."""
    end = datetime.now(ZoneInfo(KAURI_TIMEZONE)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    start = (end - timedelta(days=1)).replace(day=1).astimezone(UTC)
    return start, start + (end.astimezone(UTC) - start) / 2, end.astimezone(UTC)


def _offer_plans(staff: Person) -> None:
    if not staff.get("/api/v1/meters", code=f"eq.{SEARCHES}"):
        meter = {"code": SEARCHES, "unit": "search", "description": "Searches", "event_name": SEARCHES}
        staff.post("/api/v1/rpc/create_meter", meter)
    known = {plan["code"] for plan in staff.get("/api/v1/plans", select="code")}
    for code, plan in PLANS.items():
        if code in known:
            continue
        staff.post("/api/v1/rpc/create_plan", {"code": code, "name": plan["name"], "is_public": False})
        price = {"plan": code, "effective_from": "2020-01-01T00:00:00Z"}
        staff.post("/api/v1/rpc/create_price", price | {"model": "flat", "unit_amount_cents": plan["fee"]})
        staff.post(
            "/api/v1/rpc/create_price",
            price
            | {"meter": SEARCHES, "model": "per_unit", "unit_amount_cents": plan["unit"]}
            | {"included_quantity": plan["included"]},
        )
    staff.post(
        "/api/v1/rpc/set_plan_feature",
        {
            "plan": "demo_chambers",
            "feature": "searches",
            "kind": "limit_per_period",
            "limit_value": LIMIT,
            "enforcement": "hard",
            "meter": SEARCHES,
        },
    )


def _play_last_month(staff: Person, backend: Person, start: datetime, half: datetime, tag: str) -> None:
    began = start - timedelta(days=TRIAL_DAYS)
    staff.post(
        "/api/v1/rpc/start_subscription",
        {"plan": "demo_solo", "trial_days": TRIAL_DAYS, "has_payment_method": True, "at": began.isoformat()},
    )
    staff.post("/api/v1/rpc/change_subscription", {"plan": "demo_chambers", "at": half.isoformat()})
    _search(backend, f"{tag}-before", BEFORE, half - timedelta(days=1))
    _search(backend, f"{tag}-after", AFTER, half + timedelta(days=1))


def _search(backend: Person, name: str, quantity: int, at: datetime | None = None) -> None:
    event = {"id": name, "event": SEARCHES, "quantity": quantity} | ({"time": at.isoformat()} if at else {})
    answer = backend.post("/v1/events", {"events": [event]})
    if answer["accepted"] != 1:
        raise DemoError(f"the event {name} was not taken: {json.dumps(answer)}")


def _show_phases(console: Console, kiri: Person) -> None:
    phases = kiri.get("/api/v1/subscription_phases", order="starts_at", subscription_id="not.is.null")
    table = table_of("since", "plan", "status")
    for phase in phases:
        since = datetime.fromisoformat(phase["starts_at"]).astimezone(ZoneInfo(KAURI_TIMEZONE))
        table.add_row(f"{since:%Y-%m-%d %H:%M}", PLANS[phase["plan"]]["name"], phase["status"])
    console.print(table)
    if [phase["status"] for phase in phases] != ["trialing", "active", "active"]:
        raise DemoError(f"other phases than a trial, its end and an upgrade: {json.dumps(phases)}")


def _show_bill(console: Console, kiri: Person, start: datetime) -> None:
    first_day = start.astimezone(ZoneInfo(KAURI_TIMEZONE)).date().isoformat()
    draft = kiri.get("/api/v1/rpc/preview_invoice", period_start=first_day)
    console.print(f"\n[bold]Last month's bill, from {first_day}: both plans, half a month each[/]", highlight=False)
    table = table_of("line", "quantity", "amount", show_footer=True)
    for line in draft["lines"]:
        table.add_row(line["description"], f"{line['quantity']:,}", money(line["amount_cents"]))
    table.columns[0].footer, table.columns[2].footer = "total", money(draft["total_cents"])
    for number in (1, 2):
        table.columns[number].justify = "right"
    console.print(table)
    expected = sum(
        plan["fee"] * exact(0.5) + (used - plan["included"] * exact(0.5)) * plan["unit"]
        for plan, used in zip(PLANS.values(), (BEFORE, AFTER), strict=True)
    )
    if draft["total_cents"] != expected:
        raise DemoError(f"{expected} cents by hand, and the draft says {json.dumps(draft)}")


def _reach_quota(console: Console, kiri: Person, backend: Person, tag: str, since: datetime) -> None:
    console.print(
        f"\nChambers has {LIMIT:,} searches a month. Kauri's backend asks before it searches:\n", highlight=False
    )
    table = table_of("asks for", "answer", "")
    for wanted, expected in ((900, 200), (101, 402)):
        answer = backend.ask(
            "POST",
            "/api/v1/rpc/reserve_quota",
            json={"feature": "searches", "n": wanted, "reference": f"{tag}-{wanted}"},
        )
        said = answer.json()
        if answer.status_code != expected:
            raise DemoError(f"reserve_quota of {wanted}: {answer.status_code} {answer.text}")
        detail = clip(said["message"], 90) if expected != 200 else "granted"
        table.add_row(f"{wanted}", str(answer.status_code), detail)
    console.print(table)

    _search(backend, f"{tag}-now", 900)
    fired = _await_alerts(kiri, since)
    console.print("\n[bold]notification_log of Kauri Chambers, this month[/]", highlight=False)
    table = table_of("alert at", "of", "value found")
    for alert in fired:
        table.add_row(f"{alert['threshold']} %", f"{alert['limit_value']:,} {alert['feature']}", f"{alert['value']:,}")
    console.print(table)


def _await_alerts(kiri: Person, since: datetime) -> list[dict[str, Any]]:
    """Those of the month that began then. Usage is rolled up a moment after it came, and alerts are looked at then."""
    fired: list[dict[str, Any]] = []
    for _ in range(200):
        fired = kiri.get(
            "/api/v1/notification_log",
            kind="eq.usage_alert",
            feature="eq.searches",
            period_start=f"eq.{since:%Y-%m-%dT%H:%M:%SZ}",
            order="threshold",
        )
        if [alert["threshold"] for alert in fired] == [50, 80]:
            return fired
        time.sleep(0.05)
    raise DemoError(f"alerts at 50 and 80 % of {LIMIT} did not fire: {json.dumps(fired)}")
