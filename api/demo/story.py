"""The metered month, scene by scene. Each scene asserts what it shows, so the demo fails where the product does."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from api.demo.month import (
    AURORA_TIMEZONE,
    close_last_month,
    mend_mistake,
    prove,
    set_prices,
    usage_of_last_month,
)
from api.demo.people import Cast, DemoError, Person
from api.demo.stage import clip, copyable, scene, short, table_of
from api.demo.stripe import pay_with_stripe
from api.demo.subscription import KAURI_TIMEZONE, subscribe
from api.demo.venue import Venue


def play(console: Console, venue: Venue) -> None:
    """Play all scenes. Raises DemoError where something answers otherwise than the story says."""
    with ExitStack() as stack:
        cast = _found_organizations(console, venue, stack)
        case = _work(console, cast)
        _trespass(console, cast, case)
        set_prices(console, cast)
        batch = _send_three_times(console, cast)
        invoice = close_last_month(console, cast, venue, late=batch[0])
        mend_mistake(console, cast, invoice)
        prove(console, cast, venue, invoice, batch[0])
        subscribe(console, cast, venue)
        pay_with_stripe(console, cast, venue)
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
    scene(console, 5, "Last month's usage, sent three times at the same moment")
    batch = usage_of_last_month(cast.tag)
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


def _where_next(console: Console, cast: Cast, venue: Venue) -> None:
    scene(console, 11, "Where to go next")
    gateway = venue.gateway_url
    slug = cast.aurora["slug"]
    console.print(venue.afterwards, markup=False, highlight=False, soft_wrap=True)
    console.print("A token of Ada's, good for an hour, and three requests to try:\n", highlight=False)
    copyable(console, f"TOKEN={cast.ada.token}")
    headers = f"-H \"Authorization: Bearer $TOKEN\" -H 'X-Organization-ID: {slug}'"
    for path in (
        "documents?select=title,status,cases(title)",
        "rpc/usage_summary",
        "invoices?select=number,status,total_cents,invoice_lines(meter,quantity,amount_cents)",
    ):
        copyable(console, f"curl {headers} '{gateway}/api/v1/{path}'")
        cast.ada.ask("GET", f"/api/v1/{path}").raise_for_status()
