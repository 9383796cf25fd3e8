"""Tui Studio pays with Stripe: a checkout, webhooks that come twice and in no order, usage that arrives there once."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from rich.console import Console

from api.demo.month import PAGES
from api.demo.people import Cast, DemoError, Person
from api.demo.stage import clip, copyable, scene, short, table_of
from api.demo.stripe_place import StripePlace, stripe_place
from api.demo.venue import Venue

PLAN: Final = "demo_studio"
PRICE: Final = "price_demo_studio"
FEE: Final = 3900
SCANS: Final = 40
PAGES_A_SCAN: Final = 31
BEGUN: Final = ("trialing", "active")  # by TRIAL_DAYS
WAIT_SECONDS: Final = 30.0


def pay_with_stripe(console: Console, cast: Cast, venue: Venue) -> None:
    scene(console, 10, "Tui Studio pays with Stripe: checkout, webhooks, usage")
    if venue.settings is None or venue.settings.environment == "production":
        console.print("Left out here: it starts a sidecar of its own, whose Stripe is one that stands in.")
        return
    with stripe_place(venue.settings) as place, ExitStack() as stack:
        there = replace(venue, gateway_url=place.gateway_url)

        def enter(name: str, **options: Any) -> Person:
            return stack.enter_context(there.person(f"{name}-{cast.tag}", **options))

        noa = enter("noa", email=f"noa-{cast.tag}@example.com")
        noa.post("/api/v1/rpc/sign_in", {})
        slug = f"tui-{cast.tag}"
        noa.post("/api/v1/rpc/create_organization", {"name": "Tui Studio", "slug": slug})
        noa.act_for(slug)
        staff = enter("staff", role="platform_admin", organization=slug)
        backend = enter("backend", role="service", organization=slug)

        _set_up(console, staff, place)
        _check_out(console, noa, place, slug)
        _report(console, noa, staff, backend, cast.tag, slug)
        _reconcile(console, place, slug)


def _set_up(console: Console, staff: Person, place: StripePlace) -> None:
    """What the provider does once, and for Tui Studio: its usage goes on Stripe's invoices."""
    from api.stripe.fixtures import price  # Stripe's library takes a while to import, and most scenes need none of it
    from api.stripe.setup import set_up_account

    if not staff.get("/api/v1/plans", code=f"eq.{PLAN}"):
        staff.post("/api/v1/rpc/create_plan", {"code": PLAN, "name": "Studio", "is_public": False})
        staff.post(
            "/api/v1/rpc/create_price",
            {"plan": PLAN, "model": "flat", "unit_amount_cents": FEE} | {"effective_from": "2020-01-01T00:00:00Z"},
        )
    place.put(price(PRICE, unit_amount=FEE))
    staff.post("/api/v1/rpc/set_stripe_price", {"plan": PLAN, "price_id": PRICE})
    # One that is not public is sold to whom it was agreed with.
    staff.post("/api/v1/rpc/set_plan", {"plan": PLAN})
    staff.post("/api/v1/rpc/set_billing_terms", {"invoice_mode": "stripe_meters"})
    asyncio.run(set_up_account(place.key, place.url, place.migration_url, dry_run=False))
    console.print(
        f"A stand-in speaks Stripe's protocol at {place.url}, and a second sidecar has a key for it. "
        "`goldleaves stripe setup` has made a meter there for each priced one of ours.",
        highlight=False,
    )


def _check_out(console: Console, noa: Person, place: StripePlace, slug: str) -> None:
    asked = {"plan": PLAN, "tenant_id": slug}
    answer = noa.post("/api/billing/create_checkout_session", asked)
    if noa.post("/api/billing/create_checkout_session", asked)["checkout_url"] != answer["checkout_url"]:
        raise DemoError("asked twice, it is two checkouts")
    console.print("\nNoa, the owner, asks for a checkout; asked twice, it is one. Stripe's page is at\n")
    copyable(console, answer["checkout_url"])
    delivered = place.pay(answer["checkout_url"].rsplit("/", 1)[1], copies=2, order="shuffled")
    console.print("\nShe pays there. Stripe promises no order, and sends twice what it likes:\n")
    [linked] = noa.get("/api/v1/stripe_customers")
    table = table_of("", "webhook", "outcome", "")
    for number, one in enumerate(delivered, start=1):
        if one["status"] != 200:
            raise DemoError(f"{one['event']['type']} was answered {one['status']}: {one['answer']}")
        said = one["answer"]
        message = said["message"].replace(linked["id"], short(linked["id"]))
        table.add_row(str(number), one["event"]["type"], said["outcome"], clip(message, 42))
    console.print(table)
    phases = noa.get("/api/v1/subscription_phases", order="starts_at", subscription_id="not.is.null")
    console.print(
        f"\nWhatever the order, it ends alike: plan {phases[0]['plan']} is {phases[0]['status']}, and Tui Studio is "
        f"customer {linked['id']} at Stripe.",
        highlight=False,
    )
    if [phase["plan"] for phase in phases] != [PLAN] * len(phases) or phases[0]["status"] not in BEGUN:
        raise DemoError(f"the subscription has not begun: {json.dumps(phases)}")


def _report(console: Console, noa: Person, staff: Person, backend: Person, tag: str, slug: str) -> None:
    events = [{"id": f"{tag}-scan-{number}", "event": PAGES, "quantity": PAGES_A_SCAN} for number in range(SCANS)]
    answer = backend.post("/v1/events", {"events": events})
    if answer["accepted"] != SCANS:
        raise DemoError(f"not all events were taken: {json.dumps(answer)}")
    recorded, reported, posted = SCANS * PAGES_A_SCAN, 0, 0
    until = time.monotonic() + WAIT_SECONDS
    # What was recorded is rolled up a moment later, and reported from there.
    while (reported, posted) != (recorded, SCANS) and time.monotonic() < until:
        said = staff.post("/api/billing/report-usage", {"tenant_id": slug})
        reported += int(said["units"].get(PAGES, 0))
        found = noa.get("/api/v1/billing_events", event_name=f"eq.{PAGES}", select="status")
        posted = sum(event["status"] == 1 for event in found)
        time.sleep(0.1)
    if (reported, posted) != (recorded, SCANS):
        raise DemoError(f"{recorded} pages were recorded, {reported} reported, {posted} events of {SCANS} posted")
    console.print(f"\n[bold]POST /api/billing/report-usage, after {SCANS} scans[/]", highlight=False)
    table = table_of("meter", "recorded", "reported", "billing_events posted")
    table.add_row(PAGES, f"{recorded:,}", f"{reported:,}", f"{posted} of {SCANS}")
    console.print(table)


def _reconcile(console: Console, place: StripePlace, slug: str) -> None:
    from api.stripe.reconciled import Reconciled, reconcile_all

    told: list[Reconciled] = []
    asyncio.run(reconcile_all(place.key, place.url, place.migration_url, None, slug, told.append))
    console.print(f"\n[bold]goldleaves stripe reconcile --organization {slug}[/]", highlight=False)
    table = table_of("", "ours", "Stripe's", "drift", "")
    for finding in (finding for one in told for finding in one.findings):
        theirs = "?" if finding.theirs is None else f"{finding.theirs:,f}"
        table.add_row(finding.subject, f"{finding.ours:,f}", theirs, f"{finding.drift:f}", finding.cause)
    for number in (1, 2, 3):
        table.columns[number].justify = "right"
    console.print(table)
    pages = [finding for one in told for finding in one.findings if finding.subject == PAGES]
    if [finding.theirs for finding in pages] != [SCANS * PAGES_A_SCAN] or any(one.drifting for one in told):
        raise DemoError(f"it drifts: {told}")
