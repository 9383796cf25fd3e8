"""What a person sees: a checkout with a button that pays it, and a portal with nothing in it."""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from api.stripe.standin.account import Account
from api.stripe.standin.checkout import paid, session_of

_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ font: 1rem/1.5 system-ui; max-width: 30rem; margin: 4rem auto; padding: 0 1rem }}</style>
<h1>{title}</h1>
<p>This stands in for Stripe's page. No money moves here.</p>
{content}
"""


def page_routes(account: Account) -> list[Route]:
    async def checkout(request: Request) -> Response:
        session = session_of(account, request.path_params["id"])
        content = (
            '<form method="post"><button>Pay</button></form>'
            if session["status"] == "open"
            else f"<p>It is {escape(session['status'])}.</p>"
        )
        return HTMLResponse(_PAGE.format(title="Checkout", content=content))

    async def pay(request: Request) -> Response:
        session = session_of(account, request.path_params["id"])
        if session["status"] == "open":
            for event in paid(account, session):
                await account.send(event)
        return RedirectResponse(session["success_url"], 303)

    async def portal(request: Request) -> Response:
        return HTMLResponse(_PAGE.format(title="Billing portal", content="<p>There is nothing to do here.</p>"))

    return [
        Route("/c/pay/{id}", checkout, methods=["GET"]),
        Route("/c/pay/{id}", pay, methods=["POST"]),
        Route("/p/session/{id}", portal, methods=["GET"]),
    ]
