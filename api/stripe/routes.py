"""What owners ask of Stripe through the sidecar."""

from __future__ import annotations

from starlette.routing import Route

from api.database import Database
from api.stripe.banner import Account
from api.stripe.checkout import CHECKOUT_PATHS, Checkout
from api.stripe.owners import People
from api.stripe.portal import PORTAL_PATHS, Portal


def owner_routes(database: Database, people: People, account: Account) -> list[Route]:
    checkout, portal = Checkout(database, people, account), Portal(database, people, account)
    return [
        *(Route(path, checkout.create, methods=["POST"]) for path in CHECKOUT_PATHS),
        *(Route(path, portal.open, methods=["GET"]) for path in PORTAL_PATHS),
    ]
