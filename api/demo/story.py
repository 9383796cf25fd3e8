"""The metered month, scene by scene. Each scene asserts what it shows, so the demo fails where the product does."""

from __future__ import annotations

import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from rich.console import Console

from api.demo.people import Cast, DemoError, Person
from api.demo.stage import clip, copyable, exact, message_of, money, scene, short, table_of
from api.demo.venue import Venue

AURORA_TIMEZONE = "America/Los_Angeles"
KAURI_TIMEZONE = "Pacific/Auckland"


def play(console: Console, venue: Venue) -> None:
    """Play all scenes. Raises DemoError where something answers otherwise than the story says."""
    with ExitStack() as stack:
        cast = _found_organizations(console, venue, stack)
        case = _work(console, cast)
        _trespass(console, cast, case)
        batch = _send_three_times(console, cast)
        _close_last_month(console, cast, venue, batch)
        _where_next(console, cast, venue)


def _found_organizations(console: Console, venue: Venue, stack: ExitStack) -> Cast:
    scene(console, 1, "Two organizations, three people")
    tag = secrets.token_hex(3)

    def enter(name: str, **options: Any) -> Person:
        return stack.enter_context(venue.person(f"{name}-{tag}", **options))

    ada, ben, kiri = (enter(name, email=f"{name}-{tag}@example.com") for name in ("ada", "ben", "kiri"))
    people = {
        name: person.post("/api/v1/rpc/sign_in", {}) for name, person in (("ada", ada), ("ben", ben), ("kiri", kiri))
    }
    aurora = ada.post(
        "/api/v1/rpc/create_organization",
        {"name": "Aurora Legal", "slug": f"aurora-{tag}", "timezone": AURORA_TIMEZONE},
    )
    kauri = kiri.post(
        "/api/v1/rpc/create_organization",
        {"name": "Kauri Chambers", "slug": f"kauri-{tag}", "timezone": KAURI_TIMEZONE},
    )
    ada.act_for(aurora["slug"])
    kiri.act_for(kauri["slug"])
    invitation = ada.post("/api/v1/rpc/create_invitation", {"email": f"ben-{tag}@example.com", "role": "viewer"})
    ben.post("/api/v1/rpc/accept_invitation", {"code": invitation["code"]})
    ben.act_for(aurora["slug"])

    table = table_of("who", "role", "organization", "timezone")
    for name, person in (("Ada", ada), ("Ben", ben), ("Kiri", kiri)):
        organization = aurora if person is not kiri else kauri
        user_id = people[name.lower()]["user_id"]
        [membership] = person.get(
            "/api/v1/memberships", organization_id=f"eq.{organization['id']}", user_id=f"eq.{user_id}"
        )
        table.add_row(name, membership["role"], organization["slug"], organization["billing_timezone"])
    console.print(table)
    return Cast(
        tag=tag,
        ada=ada,
        ben=ben,
        kiri=kiri,
        backend=enter("backend", role="service", organization=aurora["slug"]),
        staff=enter("staff", role="platform_admin", organization=aurora["slug"]),
        aurora=aurora,
        kauri=kauri,
    )


def _work(console: Console, cast: Cast) -> dict[str, Any]:
    scene(console, 2, "They work, and it is metered")
    console.print(
        "Ada opens a case and uploads two documents; one is processed. Ben, a viewer, reads. Kiri opens a case."
    )
    client = cast.ada.create("clients", name="Marlowe & Sons", email="office@marlowe.example")
    case = cast.ada.create("cases", title="Marlowe v. Harbour Trust", client_id=client["id"])
    brief, _ = (
        cast.ada.create("documents", case_id=case["id"], title=title, size_bytes=size, storage_key=f"demo/{title}")
        for title, size in (("brief.pdf", 182_044), ("exhibit-a.pdf", 2_411_008))
    )
    cast.ada.change("documents", brief["id"], status="processing")
    cast.ada.change("documents", brief["id"], status="processed")
    cast.ben.get("/api/v1/documents", select="title,status", case_id=f"eq.{case['id']}")
    own = cast.kiri.create("cases", title="Estate of Te Rangi")
    cast.kiri.create("documents", case_id=own["id"], title="will.pdf", size_bytes=90_112)

    for organization, person, expected in (
        (cast.aurora, cast.ada, {"api.request": 7, "doc.upload": 2, "doc.processed": 1}),
        (cast.kauri, cast.kiri, {"api.request": 2, "doc.upload": 1}),
    ):
        events = _await_events(person, expected)
        console.print(f"[bold]billing_events of {organization['name']}[/]", highlight=False)
        table = table_of("event", "endpoint", "method", "status_code", "duration_ms", "request_id")
        for event in events:
            dimensions = event["dimensions"]
            table.add_row(
                event["event_name"],
                dimensions.get("endpoint", ""),
                dimensions.get("method", ""),
                str(dimensions.get("status_code", "")),
                str(dimensions.get("duration_ms", "")),
                short(dimensions.get("request_id", "")),
            )
        console.print(table, "")
    console.print(
        "An upload through the API is two billable units, one of each meter: the request (recorded by the gateway) and "
        "the document (recorded by a trigger in the same transaction). Their request_id is the same."
    )
    return case


def _await_events(person: Person, expected: dict[str, int]) -> list[dict[str, Any]]:
    """The gateway ships its spool a moment after it has answered: look until all is there, and no more than that."""
    counted: dict[str, int] = {}
    for _ in range(100):
        wanted = f"in.({','.join(expected)})"
        events: list[dict[str, Any]] = person.get(
            "/api/v1/billing_events", event_name=wanted, order="occurred_at,event_name"
        )
        counted = {name: sum(event["event_name"] == name for event in events) for name in expected}
        if counted == expected:
            return events
        time.sleep(0.05)
    raise DemoError(f"metered {counted}, expected {expected}")


def _trespass(console: Console, cast: Cast, case: dict[str, Any]) -> None:
    scene(console, 3, "Kiri asks for Aurora's rows, Ben for more than a viewer may")
    aurora_id = cast.aurora["id"]
    tries = [
        ("Kiri", "by filter", cast.kiri, "GET", f"/api/v1/cases?organization_id=eq.{aurora_id}", {}, 200),
        ("Kiri", "by id", cast.kiri, "GET", f"/api/v1/cases?id=eq.{case['id']}", {}, 200),
        ("Kiri", "by X-Organization-ID", cast.kiri, "GET", "/api/v1/cases",
         {"headers": {"X-Organization-ID": cast.aurora["slug"]}}, 403),
        ("Kiri", "by inserting a foreign row", cast.kiri, "POST", "/api/v1/cases",
         {"json": {"title": "planted", "organization_id": aurora_id}}, 403),
        ("Kiri", "by a foreign key", cast.kiri, "POST", "/api/v1/documents",
         {"json": {"title": "planted", "case_id": case["id"]}}, 409),
        ("Ben", "writes as viewer", cast.ben, "POST", "/api/v1/cases", {"json": {"title": "mine"}}, 403),
    ]  # fmt: skip
    table = table_of("who", "tries", "answer", "")
    for who, how, person, method, path, request, expected in tries:
        answer = person.ask(method, path, **request)
        if answer.status_code != expected or (expected == 200 and answer.json() != []):
            raise DemoError(f"{who}, {how}: {answer.status_code} {answer.text}")
        said = "no rows" if expected == 200 else answer.json()["message"]
        table.add_row(who, how, str(answer.status_code), clip(said, 90))
    console.print(table)


def _send_three_times(console: Console, cast: Cast) -> list[dict[str, Any]]:
    scene(console, 4, "The same batch, three times, at the same moment")
    start = _last_month(AURORA_TIMEZONE)
    shares = {"api.request": 140, "doc.upload": 40, "doc.processed": 20}
    batch = [
        {
            "id": f"{cast.tag}-{name}-{number}",
            "event": name,
            "quantity": 1,
            "time": (start + timedelta(hours=number)).astimezone(UTC).isoformat(),
        }
        for name, share in shares.items()
        for number in range(share)
    ]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: cast.backend.post("/v1/events", {"events": batch}), range(3)))

    table = table_of("client", "sent", "accepted", "duplicates")
    for number, answer in enumerate(answers, start=1):
        table.add_row(str(number), str(len(batch)), str(answer["accepted"]), str(answer["duplicates"]))
    accepted = sum(answer["accepted"] for answer in answers)
    table.add_section()
    table.add_row("together", str(3 * len(batch)), str(accepted), str(sum(a["duplicates"] for a in answers)))
    console.print(table)
    if accepted != len(batch):
        raise DemoError(f"{len(batch)} events counted {accepted} times")
    return batch


def _close_last_month(console: Console, cast: Cast, venue: Venue, batch: list[dict[str, Any]]) -> None:
    scene(console, 5, "Last month is closed, for ever")
    start = _last_month(AURORA_TIMEZONE).date().isoformat()
    invoice = cast.staff.post("/api/v1/rpc/finalize_period", {"period_start": start})
    lines = cast.ada.get("/api/v1/invoice_lines", invoice_id=f"eq.{invoice['id']}", order="line_number")

    console.print(f"[bold]Invoice {invoice['number']} of Aurora Legal for the month from {start}[/]", highlight=False)
    table = table_of(
        "line", "meter", "quantity", "unit", "unit price", "amount",
        show_footer=True,
    )  # fmt: skip
    for line in lines:
        table.add_row(
            str(line["line_number"]), line["meter"], str(line["quantity"]), line["unit"],
            money(line["unit_amount_cents"]), money(line["amount_cents"]),
        )  # fmt: skip
    table.columns[4].footer, table.columns[5].footer = "total", money(invoice["total_cents"])
    for number in (2, 4, 5):
        table.columns[number].justify = "right"
    console.print(table, "")
    if (
        sum(line["quantity"] for line in lines) != len(batch)
        or invoice["total_cents"] != sum(line["amount_cents"] for line in lines)
        or any(
            abs(exact(line["amount_cents"]) - exact(line["quantity"]) * exact(line["unit_amount_cents"]))
            > Decimal("0.5")
            for line in lines
        )
    ):
        raise DemoError(f"the invoice does not add up: {json.dumps([invoice, lines])}")

    late = cast.backend.post("/v1/events", {"events": [dict(batch[0], id=f"{cast.tag}-late")]})
    again = cast.staff.ask("POST", "/api/v1/rpc/recalculate_period", json={"period_start": start})
    refusals = [
        ("a late event, POST /v1/events", "rejected", message_of(late["rejected"][0])),
        ("rpc/recalculate_period", str(again.status_code), again.json()["message"]),
    ]
    if venue.superuser_url is not None:
        who = "a superuser at psql: update metering.usage_events …"
        refusals.append((who, "error", _update_in_sql(venue.superuser_url, cast.aurora["id"])))
    table = table_of("tries to change it", "answer", "")
    for what, answer, message in refusals:
        if not message.startswith("BILLING_PERIOD_LOCKED: "):
            raise DemoError(f"{what} was not refused: {message}")
        table.add_row(what, answer, clip(message, 110))
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


def _where_next(console: Console, cast: Cast, venue: Venue) -> None:
    scene(console, 6, "Where to go next")
    gateway = venue.gateway_url
    slug = cast.aurora["slug"]
    console.print(venue.afterwards, markup=False, highlight=False, soft_wrap=True)
    console.print("A token of Ada's, good for an hour, and three requests to try:\n", highlight=False)
    copyable(console, f"TOKEN={cast.ada.token}")
    headers = f"-H \"Authorization: Bearer $TOKEN\" -H 'X-Organization-ID: {slug}'"
    for path in (
        "documents?select=title,status,cases(title)",
        "rpc/usage_summary",
        "invoices?select=number,total_cents,invoice_lines(meter,quantity,amount_cents)",
    ):
        copyable(console, f"curl {headers} '{gateway}/api/v1/{path}'")
        cast.ada.ask("GET", f"/api/v1/{path}").raise_for_status()


def _last_month(timezone: str) -> datetime:
    """The first moment of last month there."""
    this_month = datetime.now(ZoneInfo(timezone)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (this_month - timedelta(days=1)).replace(day=1)
